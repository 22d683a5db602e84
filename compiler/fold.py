"""Folds a delta into one tensor on its way from file to file, and measures what rounding took away."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.file_copy import opened, read_exactly, reopen, write_all
from compiler.safetensors_file import DTYPE_BYTES, TORCH_NAMES, TensorEntry
from editspec.errors import InputError

if TYPE_CHECKING:
    from io import FileIO

    from torch import Tensor

MAX_THREADS = 4  # tensors in work at once, so also deltas in memory
PIECE = 2**17  # elements at once: few enough to stay in the processor's cache


class LinkError(Exception):
    """A delta that does not fit its tensor: an internal fault, for a pass's check should have caught it."""


@dataclass(frozen=True)
class TensorRounding:
    """How rounding to the base's number format treated one delta.

    `changed` elements had a delta other than zero; `lost` of them came out with their old value.
    `relative_error` is |what arrived - what was asked| / |what was asked|, Euclidean norms.
    """

    name: str
    changed: int
    lost: int
    relative_error: float

    @property
    def lost_fraction(self) -> float:
        """Share of the changed elements that kept their old value, from 0 to 1."""
        return self.lost / self.changed if self.changed else 0.0

    def as_dict(self) -> dict[str, float | int]:
        """The same as JSON."""
        return {
            "changed": self.changed,
            "lost": self.lost,
            "lost_fraction": self.lost_fraction,
            "relative_error": self.relative_error,
        }


def fold_all(
    entries: Iterable[TensorEntry], deltas: Mapping[str, Tensor], target: Path, shift: int
) -> list[TensorRounding]:
    """Fold each entry's delta into its place in the file `target`, several tensors at once; as `fold`."""

    def fold_one(entry: TensorEntry) -> TensorRounding:
        with opened(entry.file) as source, reopen(target) as sink:
            return fold(entry, deltas[entry.name], source, sink, shift)

    with one_thread_each(), ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(fold_one, entries))


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep torch from cutting our small pieces up among threads that then wait for each other.

    On a busy machine that waiting made linking ten times slower; whole tensors side by side wait for nobody.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fold(entry: TensorEntry, delta: Tensor, source: FileIO, sink: FileIO, shift: int) -> TensorRounding:
    """Write old value + delta, added in fp32 and rounded once to the tensor's type.

    `source` and `sink` are open files; the tensor lies in `sink` at its old place plus `shift`. An fp64
    tensor is added to in fp64. Raises `LinkError` for a delta of another shape or type, and for a result
    that is not finite.
    """
    import torch

    if tuple(delta.shape) != entry.shape or delta.dtype != torch.float32:
        raise LinkError(f"the delta of {entry.name} is {delta.dtype} {tuple(delta.shape)}, not {entry.shape}")
    dtype: torch.dtype = getattr(torch, TORCH_NAMES[entry.dtype])
    if not dtype.is_floating_point:
        raise LinkError(f"{entry.name} is {entry.dtype}, which takes no delta")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    asked = delta.detach().to("cpu", wide).reshape(-1)
    totals = _Totals()
    for first in range(0, entry.parameters, PIECE):
        piece = asked[first : first + PIECE]
        at = entry.start + first * DTYPE_BYTES[entry.dtype]
        raw = memoryview(bytearray(len(piece) * DTYPE_BYTES[entry.dtype]))
        read_exactly(source, raw, at, entry.file)
        old = torch.frombuffer(raw, dtype=dtype)
        new = (old.to(wide) + piece).to(dtype)
        if not totals.add(old.to(wide), new.to(wide), piece):
            _refuse_not_finite(entry, old, new, piece)
        write_all(sink, new.view(torch.uint8).numpy().data, at + shift)
    return totals.report(entry.name)


class _Totals:
    """Sums over the pieces of a tensor."""

    def __init__(self) -> None:
        self.changed = self.lost = 0
        self.asked = self.missed = 0.0

    def add(self, old: Tensor, new: Tensor, asked: Tensor) -> bool:
        """Count one piece; False where something in it may not be finite."""
        import torch

        arrived = new - old
        changed = int(torch.count_nonzero(asked))
        self.changed += changed
        self.lost += changed - int(torch.count_nonzero(arrived))  # where nothing was asked, nothing arrives
        self.asked += float(torch.dot(asked, asked))
        missed = float(torch.linalg.vector_norm(arrived - asked)) ** 2
        self.missed += missed
        return math.isfinite(missed)

    def report(self, name: str) -> TensorRounding:
        error = math.sqrt(self.missed / self.asked) if self.asked else 0.0
        return TensorRounding(name, self.changed, self.lost, error)


def _refuse_not_finite(entry: TensorEntry, old: Tensor, new: Tensor, delta: Tensor) -> None:
    """Raise the error that fits; nothing where only the sums grew too large."""
    if not old.isfinite().all():
        raise InputError(
            str(entry.file), f"has a number in {entry.name} that is not finite", "take a sound base"
        )
    if not delta.isfinite().all():
        raise LinkError(f"the delta of {entry.name} is not finite")
    if not new.isfinite().all():
        raise LinkError(f"{entry.name} with its delta leaves the range of {entry.dtype}")
