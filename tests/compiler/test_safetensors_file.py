from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compiler import safetensors_file
from compiler.safetensors_file import TensorEntry, encode_header, read_header, read_metadata, read_tensor
from editspec.errors import InputError

TYPES = {name: getattr(torch, kind) for name, kind in safetensors_file.TORCH_NAMES.items()}

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}(\.[a-z0-9_]{1,6}){0,3}", fullmatch=True)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
tables = st.dictionaries(names, st.tuples(st.sampled_from(sorted(TYPES)), shapes), max_size=6)
relaxed = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(path: Path, table: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """Tensors of counted bytes, saved with the safetensors library."""
    tensors = {}
    for name, (kind, shape) in table.items():
        size = math.prod(shape) * safetensors_file.DTYPE_BYTES[kind]
        data = torch.arange(size, dtype=torch.uint8) % 2  # 0 and 1 are sound in every type, bool included
        tensors[name] = data.view(TYPES[kind]).reshape(shape)
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


def crafted(path: Path, header: Any, data: bytes = b"", *, text: bytes | None = None) -> Path:
    """A file with any header, honest or not."""
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@relaxed
@given(tables)
def test_what_the_library_writes_is_read_back_the_same(tmp_path: Path, table: Any) -> None:
    path = tmp_path / "a.safetensors"
    tensors = written(path, table)
    entries, data_start = read_header(path)
    assert entries.keys() == tensors.keys()
    assert sum(entry.stop - entry.start for entry in entries.values()) == path.stat().st_size - data_start
    for name, tensor in tensors.items():
        read = read_tensor(entries[name])
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert read.contiguous().view(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    assert read_metadata(path) == {"format": "pt"}


@relaxed
@given(tables)
def test_the_headers_we_write_are_those_of_the_library(tmp_path: Path, table: Any) -> None:
    path = tmp_path / "a.safetensors"
    written(path, table)
    entries, data_start = read_header(path)
    assert encode_header(entries.values()) == path.read_bytes()[:data_start]


@relaxed
@given(tables.filter(bool), st.data())
def test_a_flipped_byte_of_the_header_is_refused_or_read_as_the_library_reads_it(
    tmp_path: Path, table: Any, data: st.DataObject
) -> None:
    path = tmp_path / "a.safetensors"
    written(path, table)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, read_header(path)[1] - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert_refused_or_as_the_library(path)


@relaxed
@given(tables.filter(bool), st.data())
def test_a_cut_file_is_refused(tmp_path: Path, table: Any, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    written(path, table)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError):
        read_header(path)


@relaxed
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_at_all_are_refused_or_read_as_the_library_reads_them(
    tmp_path: Path, content: bytes, framed: bool
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content if framed else content)
    assert_refused_or_as_the_library(path)


def assert_refused_or_as_the_library(path: Path) -> None:
    try:
        entries, data_start = read_header(path)
    except InputError:
        return
    position = data_start
    for entry in entries.values():
        assert entry.start == position
        position = entry.stop
    assert position == path.stat().st_size
    with safe_open(path, "pt") as reference:
        assert set(reference.keys()) == set(entries)
        for name, entry in entries.items():
            piece = reference.get_slice(name)
            assert (piece.get_dtype(), tuple(piece.get_shape())) == (entry.dtype, entry.shape)


LIES: dict[str, tuple[Any, str]] = {
    "an overlap": ({"a": one(), "b": one("F16", offsets=(4, 8))}, "overlap"),
    "the same bytes twice": ({"a": one(), "b": one()}, "overlap"),
    "a hole": ({"a": one(shape=(1,), offsets=(4, 8))}, "hole"),
    "bytes of nobody": ({"a": one(shape=(1,), offsets=(0, 4))}, "belong to no tensor"),
    "an end beyond the file": ({"a": one(shape=(4,), offsets=(0, 16))}, "cut short"),
    "a wrong size for the type": ({"a": one("F16")}, "takes 4"),
    "an unknown type": ({"a": one("F33")}, "the type 'F33'"),
    "a type smaller than a byte": ({"a": one("F4", (16,))}, "the type 'F4'"),
    "a shape of text": ({"a": one(shape="ab")}, "the shape"),
    "a shape of truth values": ({"a": one(shape=[True, True])}, "the shape"),
    "a negative dimension": ({"a": one(shape=(-2,))}, "JSON"),
    "a broken dimension": ({"a": one(shape=(2.0,))}, "JSON"),
    "a dimension beyond 64 bits": ({"a": one(shape=(10**30,))}, "JSON"),
    "an empty tensor of impossible size": ({"a": one(shape=(0, 2**62, 2), offsets=(0, 0))}, "impossible"),
    "too many dimensions": ({"a": one(shape=[1] * 9)}, "the shape"),
    "offsets backwards": ({"a": one(offsets=(8, 0))}, "byte range"),
    "three offsets": ({"a": one(offsets=(0, 4, 8))}, "byte range"),
    "an unknown field": ({"a": one(more=1)}, "other fields"),
    "a missing field": ({"a": {"dtype": "F32", "shape": [2]}}, "other fields"),
    "a tensor that is a list": ({"a": [1]}, "other fields"),
    "a name that is a path": ({"../a": one()}, "names a tensor"),
    "a name with a space": ({"a b": one()}, "names a tensor"),
    "an empty name": ({"": one()}, "names a tensor"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": one()}, "table of strings"),
    "metadata that is a list": ({"__metadata__": [], "a": one()}, "table of strings"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    header, message = LIES[lie]
    path = crafted(tmp_path / "a.safetensors", header, bytes(8))
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b'{"a":' + json.dumps(one()).encode() + b',"a":' + json.dumps(one()).encode() + b"}",
            "occurs twice",
        ),
        (b'{"__metadata__":{"x":"1","x":"2"}}', "occurs twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "occurs twice"),
        (b' {"a":1}', "does not open with"),
        (b"[]", "does not open with"),
        (b'{"a":NaN}', "JSON"),
        (b'{"a":\xff}', "JSON"),
        (b'{"__metadata__":{"x":"\\ud800"}}', "proper Unicode"),
        (b'{"a":' * 100_000, "JSON"),
        (b"{" + b'"a":1}}', "JSON"),
        (b"", "does not open with"),
    ],
)
def test_a_header_that_could_be_read_two_ways_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_header(crafted(tmp_path / "a.safetensors", None, bytes(8), text=text))
    assert message in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200_000_000, 9])
def test_a_wrong_header_length_is_refused_without_reading_it(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}      ")
    with pytest.raises(InputError, match="announces a header"):
        read_header(path)


def test_the_limit_of_the_format_holds_even_where_the_bytes_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((safetensors_file.MAX_HEADER + 1).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(safetensors_file.MAX_HEADER + 100)  # sparse: takes no room
    with pytest.raises(InputError, match="limit"):
        read_header(path)


def test_a_git_lfs_pointer_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="Git LFS pointer"):
        read_header(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(InputError):
            read_header(path)


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(64)}, path)
    entry = read_header(path)[0]["a"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="shorter"):
        read_tensor(entry)


def test_the_library_itself_accepts_what_we_refuse(tmp_path: Path) -> None:
    """Why this module exists; should the library grow stricter, this test says so."""
    entry = json.dumps(one()).encode()
    path = crafted(
        tmp_path / "a.safetensors", None, bytes(8), text=b'{"a":' + entry + b',"a":' + entry + b"}"
    )
    try:
        with safe_open(path, "pt") as file:
            assert list(file.keys()) == ["a"]
    except SafetensorError:
        pytest.fail("safetensors refuses duplicate keys now")


def test_parameters_are_counted_from_the_shape() -> None:
    assert TensorEntry("a", "F16", (3, 4), Path("a"), 0, 24).parameters == 12
    assert TensorEntry("a", "F16", (), Path("a"), 0, 2).parameters == 1
