"""What sets the weights of one checkpoint apart from another's: which tensors, and how far each moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compiler.sites import group_of

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.weights import Weights


@dataclass(frozen=True)
class Moved:
    """A tensor that differs: squared norms of the first one and of the difference, its largest element."""

    name: str
    energy: float
    change: float
    largest: float

    @property
    def relative(self) -> float:
        """Norm of the difference as a share of the first tensor's norm; infinite where that is nought."""
        return relative(self.energy, self.change)


@dataclass(frozen=True)
class Compared:
    """One component of two checkpoints. `energy` is the squared norm of all tensors that both have alike.

    `reshaped` have another shape in the second one, `retyped` are of another number format; these are
    compared all the same.
    """

    component: str
    tensors: int
    energy: float
    moved: tuple[Moved, ...] = ()
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both have the same tensors with the same values, formats apart."""
        return not (self.moved or self.only_first or self.only_second or self.reshaped)

    @property
    def relative(self) -> float:
        """Norm of all differences as a share of the norm of all that was compared."""
        return relative(self.energy, math.fsum(one.change for one in self.moved))

    def by_group(self) -> dict[str, tuple[int, float]]:
        """For each block and kind of layer of a U-Net: tensors that differ, and their relative change."""
        groups: dict[str, list[Moved]] = {}
        for one in self.moved:
            groups.setdefault(group_of(one.name), []).append(one)
        return {
            name: (
                len(found),
                relative(math.fsum(m.energy for m in found), math.fsum(m.change for m in found)),
            )
            for name, found in sorted(groups.items())
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON facts; tensors that differ come with their relative change and largest difference."""
        return {
            "tensors": self.tensors,
            "equal": self.equal,
            "relative_change": _short(self.relative),
            "moved": {
                one.name: {"relative_change": _short(one.relative), "largest": _short(one.largest)}
                for one in self.moved
            },
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "reshaped": list(self.reshaped),
            "retyped": list(self.retyped),
        }


def tensors_of(first: Checkpoint, second: Checkpoint) -> int:
    """How many tensors `compare` reads from each, at most."""
    return sum(len(_entries(first, name)) for name in {*first.weighted, *second.weighted})


def compare(
    first: Checkpoint, second: Checkpoint, advance: Callable[[int], None] = lambda tensors: None
) -> list[Compared]:
    """Every component with weights that either checkpoint has, by name; tensors are read one by one."""
    found = []
    for name in sorted({*first.weighted, *second.weighted}):
        here, there = (one.weights(name) if name in one.weighted else None for one in (first, second))
        found.append(_compared(name, here, there, advance))
    return found


def relative(energy: float, change: float) -> float:
    """A norm as a share of another, from their squares."""
    if not change:
        return 0.0
    return math.sqrt(change / energy) if energy else math.inf


def _compared(
    component: str, first: Weights | None, second: Weights | None, advance: Callable[[int], None]
) -> Compared:
    """Both components, tensor by tensor."""
    here = first.entries if first else {}
    there = second.entries if second else {}
    both = sorted(here.keys() & there.keys())
    reshaped = tuple(name for name in both if here[name].shape != there[name].shape)
    moved, energies = [], []
    for name in both:
        if name not in reshaped:
            assert first is not None
            assert second is not None
            one = _moved(name, first, second)
            energies.append(one.energy)
            moved += [one] if one.change else []
        advance(1)
    return Compared(
        component,
        len(here.keys() | there.keys()),
        math.fsum(energies),
        tuple(moved),
        tuple(sorted(here.keys() - there.keys())),
        tuple(sorted(there.keys() - here.keys())),
        reshaped,
        tuple(name for name in both if here[name].dtype != there[name].dtype),
    )


def _moved(name: str, first: Weights, second: Weights) -> Moved:
    before, after = first.read(name).double(), second.read(name).double()
    difference = after - before
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    return Moved(name, float(before.square().sum()), float(difference.square().sum()), largest)


def _entries(checkpoint: Checkpoint, component: str) -> Mapping[str, Any]:
    return checkpoint.weights(component).entries if component in checkpoint.weighted else {}


def _short(value: float) -> float | None:
    """Four digits; None for what JSON has no number for."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
