"""Folds a delta into one tensor on its way from file to file, and measures what rounding took away."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.file_copy import opened, read_exactly, write_all
from compiler.safetensors_file import DTYPE_BYTES, TORCH_NAMES, TensorEntry
from editspec.errors import InputError

if TYPE_CHECKING:
    from io import FileIO

    import torch
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


def one_thread_here() -> None:
    """The same for the calling thread, inside `one_thread_each`.

    A thread that torch has not yet looked at, as it does at its first large tensor, would let MKL use all
    cores: the last digits of a sum would then depend on which tensors a thread had met before.
    """
    import torch

    torch.set_num_threads(1)


def fold(
    entry: TensorEntry, delta: Tensor | TensorEntry, source: FileIO, sink: FileIO, shift: int
) -> TensorRounding:
    """Write old value + delta, added in fp32 and rounded once to the tensor's type.

    `source` and `sink` are open files; the tensor lies in `sink` at its old place plus `shift`. A delta that
    is an entry of a file is read in pieces, and never whole. An fp64 tensor is added to in fp64. Raises
    `LinkError` for a delta of another shape or type, and for a result that is not finite.
    """
    import torch

    if tuple(delta.shape) != entry.shape or delta.dtype not in (torch.float32, "F32"):
        raise LinkError(f"the delta of {entry.name} is {delta.dtype} {tuple(delta.shape)}, not {entry.shape}")
    dtype: torch.dtype = getattr(torch, TORCH_NAMES[entry.dtype])
    if not dtype.is_floating_point:
        raise LinkError(f"{entry.name} is {entry.dtype}, which takes no delta")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    totals = _Totals()
    # One set of buffers for all pieces: fresh memory costs more than the arithmetic.
    room = min(PIECE, entry.parameters)
    raw, stored = _buffer(room, dtype)
    before, after = torch.empty(room, dtype=wide), torch.empty(room, dtype=wide)
    with _pieces_of(delta, wide) as asked:
        for first in range(0, entry.parameters, PIECE):
            piece = asked(first)
            count = len(piece)
            at = entry.start + first * DTYPE_BYTES[entry.dtype]
            data = raw[: count * DTYPE_BYTES[entry.dtype]]
            read_exactly(source, data, at, entry.file)
            value, old, new = stored[:count], before[:count], after[:count]
            old.copy_(value)
            value.copy_(torch.add(old, piece, out=new))  # rounds
            new.copy_(value)
            if not totals.add(old, new, piece):
                _refuse_not_finite(entry, old, value, piece)
            write_all(sink, data, at + shift)
    return totals.report(entry.name)


class _Totals:
    """Sums over the pieces of a tensor."""

    def __init__(self) -> None:
        self.changed = self.lost = 0
        self.asked = self.missed = 0.0

    def add(self, old: Tensor, new: Tensor, asked: Tensor) -> bool:
        """Count one piece, leaving rubbish in `new`; False where something in it may not be finite."""
        import torch

        arrived = new.sub_(old)
        changed = _not_zero(asked)
        self.changed += changed
        self.lost += changed - _not_zero(arrived)  # where nothing was asked, nothing arrives
        self.asked += float(torch.dot(asked, asked))
        missed = float(torch.linalg.vector_norm(arrived.sub_(asked))) ** 2
        self.missed += missed
        return math.isfinite(missed)

    def report(self, name: str) -> TensorRounding:
        error = math.sqrt(self.missed / self.asked) if self.asked else 0.0
        return TensorRounding(name, self.changed, self.lost, error)


@contextlib.contextmanager
def _pieces_of(delta: Tensor | TensorEntry, wide: torch.dtype) -> Iterator[Callable[[int], Tensor]]:
    """A function that gives up to `PIECE` elements of the delta from an index on, valid until the next."""
    import torch

    if isinstance(delta, torch.Tensor):
        flat = delta.detach().to("cpu", wide).reshape(-1)
        yield lambda first: flat[first : first + PIECE]
        return
    place, size = delta, DTYPE_BYTES[delta.dtype]
    raw, room = _buffer(min(PIECE, place.parameters), torch.float32)
    with opened(place.file) as file:

        def read(first: int) -> Tensor:
            count = min(PIECE, place.parameters - first)
            read_exactly(file, raw[: count * size], place.start + first * size, place.file)
            return room[:count].to(wide)

        yield read


def _buffer(count: int, dtype: torch.dtype) -> tuple[memoryview, Tensor]:
    """Room for `count` elements, as bytes and as a tensor of the same memory."""
    import torch

    room = torch.empty(count, dtype=dtype)  # aligned as torch has it: sums may depend on that
    return room.view(torch.uint8).numpy().data, room


def _not_zero(values: Tensor) -> int:
    """How many are not zero: by numpy, which counts five times as fast as torch does."""
    import numpy as np

    return int(np.count_nonzero(values.numpy() != 0))


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
