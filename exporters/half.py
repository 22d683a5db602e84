"""A checkpoint with all its weights in fp16: half the size, for machines that sample in fp16 anyway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.file_copy import create, write_all
from compiler.link import link
from compiler.progress import Silent
from compiler.safetensors_file import TensorEntry, encode_header, read_header, read_tensor
from editspec.errors import InputError
from exporters.destination import RECORD, export_folder, record, write_record

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.checkpoint import Checkpoint
    from compiler.progress import Progress

_WIDE = ("F64", "F32", "BF16")


def export_fp16(
    checkpoint: Checkpoint, out: Path, *, force: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Write `checkpoint` in fp16 to the folder `out`, an ordinary diffusers folder; returns its record.

    Each number is rounded once, to the nearest. `InputError` where one is beyond fp16's range, which would
    make pictures black; nothing is written then.
    """
    size = sum((checkpoint.root / name).stat().st_size for name in checkpoint.files())
    with export_folder(out, checkpoint=checkpoint, needed_bytes=size, force=force) as built:
        link(checkpoint, {}, built.folder)
        files = sorted(built.folder.glob("*/*.safetensors"))
        worst: dict[str, float] = {}
        with (progress or Silent()).task("fp16", total=len(files)) as task:
            for path in files:
                component = path.parent.name
                worst[component] = max(worst.get(component, 0.0), halve(path))
                task.advance(1)
        for path in sorted(built.folder.glob("*/*.json")):
            _restate(path)
        facts = record("fp16", checkpoint, {"largest_rounding": worst})
        write_record(built.path(RECORD), facts)
    return facts


def halve(path: Path) -> float:
    """Rewrite a safetensors file with its floating-point tensors in fp16; the largest rounding error.

    One tensor is in memory at a time. `InputError` for a number that fp16 has no finite value for.
    """
    entries, _ = read_header(path)
    halved = [_halved(entry) for entry in entries.values()]
    part = path.with_name(f".{path.name}.part")
    worst = 0.0
    header = encode_header(halved)
    position = len(header)
    with create(part) as sink:
        write_all(sink, header, 0)
        for entry, new in zip(entries.values(), halved, strict=True):
            tensor, error = _rounded(entry)
            worst = max(worst, error)
            write_all(sink, _bytes(tensor), position)
            position += new.stop - new.start
    part.replace(path)
    return worst


def _halved(entry: TensorEntry) -> TensorEntry:
    if entry.dtype not in _WIDE:
        return entry
    return TensorEntry(entry.name, "F16", entry.shape, entry.file, 0, 2 * entry.parameters)


def _rounded(entry: TensorEntry) -> tuple[Tensor, float]:
    import torch

    tensor = read_tensor(entry)
    if entry.dtype not in _WIDE:
        return tensor, 0.0
    half = tensor.to(torch.float16)
    if not bool(half.isfinite().all()):
        where = f"{entry.file.parent.name}/{entry.file.name}"
        what = f"has a number in {entry.name} that fp16 cannot hold (largest {float(tensor.abs().max()):.3g})"
        raise InputError(where, what, "keep it in fp32 or bf16")
    error = (half.double() - tensor.double()).abs().max() if tensor.numel() else torch.zeros(())
    return half, float(error)


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _restate(path: Path) -> None:
    """Bring what a JSON file says of sizes and number formats up to date."""
    value = json.loads(path.read_text("utf-8"))
    if not isinstance(value, dict):
        return
    changed: dict[str, Any] = {key: "float16" for key in ("dtype", "torch_dtype") if key in value}
    if path.name.endswith(".index.json"):
        shards = [read_header(path.parent / name)[0] for name in sorted(set(value["weight_map"].values()))]
        total = sum(entry.stop - entry.start for shard in shards for entry in shard.values())
        changed["metadata"] = {"total_size": total}
    if changed:
        path.unlink()
        write_record(path, value | changed)
