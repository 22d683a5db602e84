"""A safetensors file seen as named byte ranges: a header reader that refuses whatever could be read two ways.

Stricter than the safetensors library, which accepts a duplicate key, unknown fields of a tensor and
names such as `../x`. What this module accepts, the library accepts too, and with the same meaning.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from compiler.file_copy import opened, read_exactly
from editspec.errors import InputError

if TYPE_CHECKING:
    import torch

LENGTH_BYTES = 8  # the file opens with the header's length, an unsigned little-endian 64-bit number
MAX_HEADER = 100_000_000  # the format's own limit
MAX_TENSORS = 100_000  # SDXL's U-Net has 1,680
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**40  # over the non-zero dimensions, so that an empty tensor's strides cannot overflow

#: Bytes of one element. Types smaller than a byte do not occur in a checkpoint that we can edit.
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

#: The same types as attributes of torch.
TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64",
}  # fmt: skip

#: The only metadata we write: the library writes two keys in random order, so one key makes equal bytes.
METADATA = {"format": "pt"}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}")
_LFS_POINTER = b"version "  # "version https://git-lfs.github.com/spec/v1"
_DAMAGED = "fetch the file again; if it stays so, do not trust its source"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its type and shape, and its bytes as the absolute range [start, stop)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> tuple[dict[str, TensorEntry], int]:
    """The tensors of a file in the order of their bytes, and the offset at which those bytes begin.

    Their ranges tile the rest of the file exactly. Raises `InputError` for everything else.
    """
    entries, data_start, _ = read_layout(path)
    return entries, data_start


def read_metadata(path: Path) -> dict[str, str]:
    """The file's `__metadata__`, {} when it has none. Raises `InputError` as `read_header` does."""
    return read_layout(path)[2]


def encode_header(entries: Iterable[TensorEntry]) -> bytes:
    """The opening bytes of a file holding `entries`, tightly packed in the given order (length included)."""
    header: dict[str, Any] = {"__metadata__": METADATA}
    position = 0
    for entry in entries:
        size = entry.stop - entry.start
        offsets = [position, position + size]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # the data then begins at a multiple of 8, as the library has it
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """The tensor itself, in its own type, in fresh memory. Raises `InputError` if the file has shrunk."""
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_NAMES[entry.dtype])
    if entry.parameters == 0:
        return torch.empty(entry.shape, dtype=dtype)
    data = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
    with opened(entry.file) as file:
        read_exactly(file, data.numpy().data, entry.start, entry.file)
    return data.view(dtype).reshape(entry.shape)


def read_layout(path: Path) -> tuple[dict[str, TensorEntry], int, dict[str, str]]:
    """What `read_header` and `read_metadata` say, for the price of one. Raises `InputError` as they do."""
    text, size = _header_text(path)
    header = _parse(path, text)
    metadata = _checked_metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        _refuse(path, f"lists {len(header):,} tensors; at most {MAX_TENSORS:,} are read", "")
    data_start = LENGTH_BYTES + len(text)
    entries = [_entry(path, name, fields, data_start) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _require_tiling(path, entries, data_start, size)
    return {entry.name: entry for entry in entries}, data_start, metadata


def _header_text(path: Path) -> tuple[bytes, int]:
    """The header's bytes, and the size of the whole file."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                _refuse(path, "is not an ordinary file", "")
            opening = file.read(LENGTH_BYTES)
            if opening == _LFS_POINTER:
                _refuse(path, "is a Git LFS pointer, not the weights themselves", "run `git lfs pull` there")
            if len(opening) < LENGTH_BYTES:
                _refuse(path, f"has {status.st_size} bytes, too few for a safetensors file", _DAMAGED)
            length = int.from_bytes(opening, "little")
            room = status.st_size - LENGTH_BYTES
            if length > min(room, MAX_HEADER):
                limit = f"only {room:,} bytes follow" if length > room else f"the limit is {MAX_HEADER:,}"
                _refuse(path, f"announces a header of {length:,} bytes, but {limit}", _DAMAGED)
            text = file.read(length)
    except IsADirectoryError:
        _refuse(path, "is a folder, not a safetensors file", "")
    except FileNotFoundError:
        _refuse(path, "does not exist", "")
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}", "")
    if len(text) < length:
        _refuse(path, "became shorter while it was read", _DAMAGED)
    return text, status.st_size


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        _refuse(path, "has a header that does not open with '{'", _DAMAGED)
    try:
        header = json.loads(
            text.rstrip(b" ").decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_unsigned,
            parse_float=_no_such_number,
            parse_constant=_no_such_number,
        )
    except (ValueError, RecursionError) as error:
        _refuse(path, f"has a header that is not valid JSON ({error or 'nested too deep'})", _DAMAGED)
    return dict(header)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name[:80]!r} occurs twice")
        result[name] = value
    return result


def _unsigned(text: str) -> int:
    if text.startswith("-") or len(text) > 20:
        raise ValueError(f"{text[:20]} is not a number that belongs here")
    return int(text)


def _no_such_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not a whole number")


def _checked_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "has a __metadata__ that is not a table of strings", _DAMAGED)
    try:
        for key, value in metadata.items():
            (key + value).encode("utf-8")
    except UnicodeEncodeError:
        _refuse(path, "has a __metadata__ that is not proper Unicode", _DAMAGED)
    return dict(metadata)


def _entry(path: Path, name: str, fields: Any, data_start: int) -> TensorEntry:
    if not _NAME.fullmatch(name) or ".." in name:
        _refuse(path, f"names a tensor {name[:80]!r}", "names are letters, digits, '_', '-' and single dots")
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"describes {name} by other fields than dtype, shape and data_offsets", _DAMAGED)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        _refuse(path, f"gives {name} the type {dtype!r}", f"known types are {', '.join(DTYPE_BYTES)}")
    if not _are_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        _refuse(path, f"gives {name} the shape {str(shape)[:80]}", _DAMAGED)
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        _refuse(path, f"gives {name} the impossible shape {shape}", _DAMAGED)
    if not _are_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(path, f"gives {name} the byte range {str(offsets)[:80]}", _DAMAGED)
    needed, there = math.prod(shape) * DTYPE_BYTES[dtype], offsets[1] - offsets[0]
    if needed != there:
        _refuse(path, f"gives {name} {there:,} bytes; {dtype} of shape {shape} takes {needed:,}", _DAMAGED)
    return TensorEntry(name, dtype, tuple(shape), path, data_start + offsets[0], data_start + offsets[1])


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _require_tiling(path: Path, entries: list[TensorEntry], data_start: int, size: int) -> None:
    """Each byte after the header belongs to exactly one tensor."""
    position, before = data_start, "the header"
    for entry in entries:
        if entry.stop > size:
            what = f"is cut short: {entry.name} ends at byte {entry.stop:,} of a file of {size:,}"
            _refuse(path, what, _DAMAGED)
        if entry.start < position:
            _refuse(path, f"lets {entry.name} overlap {before}", _DAMAGED)
        if entry.start > position:
            _refuse(path, f"leaves a hole between {before} and {entry.name}", _DAMAGED)
        position, before = entry.stop, entry.name
    if position != size:
        _refuse(path, f"has {size - position:,} bytes after {before} that belong to no tensor", _DAMAGED)


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise InputError(str(path), what, remedy)
