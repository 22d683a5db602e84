"""What an edited U-Net has that its base has not: fp32 changes by tensor name, read one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from compiler.artifact import DELTAS, LOCK
from compiler.checkpoint import UNET
from compiler.json_file import read_object
from compiler.safetensors_file import TORCH_NAMES, TensorEntry, read_header, read_tensor
from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Changes(Mapping[str, Tensor]):
    """Name -> change, fp32 on the CPU; each look-up reads the files.

    `origin` is "provenance" for what the build recorded before rounding, "difference" for edited minus base.
    """

    edited: Checkpoint
    base: Checkpoint | None
    origin: Literal["provenance", "difference"]
    _names: tuple[str, ...]
    _recorded: Mapping[str, TensorEntry]

    def __getitem__(self, name: str) -> Tensor:
        if self.origin == "provenance":
            return read_tensor(self._recorded[name])
        assert self.base is not None  # a difference has two sides
        weights = self.edited.weights(UNET), self.base.weights(UNET)
        new, old = (side.read(name).to(torch.float32) for side in weights)
        return new - old

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A change's shape, without reading it."""
        return self.edited.weights(UNET).entries[name].shape

    def base_record(self) -> dict[str, Any] | None:
        """Digest, for a Hub base also repository and commit, of what the changes are for; None if unknown."""
        if self.base is not None:
            return {"digest": self.base.digest}
        path = self.edited.root / LOCK
        recorded = read_object(path).get("base") if path.is_file() else None
        if not isinstance(recorded, dict):
            return None
        return {key: recorded[key] for key in ("digest", "repo", "revision") if key in recorded}

    @property
    def parameters(self) -> int:
        """Number of elements in all changes."""
        return sum(self.edited.weights(UNET).entries[name].parameters for name in self._names)


@dataclass(frozen=True)
class Reproduction:
    """Whether base + change gives the edited weights, bit by bit, after rounding to their number format."""

    tensors: int
    wrong_elements: int
    largest: float

    @property
    def exact(self) -> bool:
        """Whether every element came out right."""
        return self.wrong_elements == 0

    def as_dict(self) -> dict[str, Any]:
        """JSON facts."""
        return {
            "tensors": self.tensors,
            "wrong_elements": self.wrong_elements,
            "largest": self.largest,
            "exact": self.exact,
        }


def changes_of(edited: Checkpoint, base: Checkpoint | None) -> Changes:
    """The changes of an artifact as it recorded them, else the difference to `base`.

    `InputError` where there is neither, or where the two checkpoints are not of one kind.
    """
    if base is not None:
        _require_same_kind(edited, base)
    path = edited.root / DELTAS
    if path.is_file():
        recorded = read_header(path)[0]
        entries = edited.weights(UNET).entries
        for name, entry in recorded.items():
            if name not in entries or entry.shape != entries[name].shape or entry.dtype != "F32":
                raise InputError(
                    str(path), f"has a change of {name} that fits no U-Net weight", "build again"
                )
        return Changes(edited, base, "provenance", tuple(sorted(recorded)), recorded)
    if base is None:
        where = str(edited.root)
        raise InputError(where, f"has no {DELTAS}, so its changes are unknown", "name its base with --base")
    return Changes(edited, base, "difference", _different(edited, base), {})


def reproduction(changes: Changes, base: Checkpoint) -> Reproduction:
    """Add every change to `base` as the linker does, and compare with the edited U-Net."""
    wrong, largest = 0, 0.0
    ours, theirs = changes.edited.weights(UNET), base.weights(UNET)
    for name, entry in ours.entries.items():
        new, old = ours.read(name), theirs.read(name)
        dtype: torch.dtype = getattr(torch, TORCH_NAMES[entry.dtype])
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        made = (old.to(wide) + changes[name].to(wide)).to(dtype) if name in changes else old.to(dtype)
        differs = made != new
        if bool(differs.any()):
            wrong += int(differs.sum())
            largest = max(largest, float((made.double() - new.double()).abs().max()))
    return Reproduction(len(ours.entries), wrong, largest)


def _require_same_kind(edited: Checkpoint, base: Checkpoint) -> None:
    """Both U-Nets have the same tensors, and no other component differs: a change is of the U-Net alone."""
    shapes = [{n: e.shape for n, e in one.weights(UNET).entries.items()} for one in (edited, base)]
    if shapes[0] != shapes[1]:
        raise InputError(
            str(base.root), "has a U-Net of another shape", "name the base that it was made from"
        )
    for component in sorted(set(edited.weighted) & set(base.weighted) - {UNET}):
        one, other = edited.weights(component), base.weights(component)
        same = one.entries.keys() == other.entries.keys() and all(
            torch.equal(one.read(name).double(), other.read(name).double()) for name in one.entries
        )
        if not same:
            what = f"differs from the base in its {component} too"
            raise InputError(str(edited.root), what, "only changes of the U-Net can be exported")


def _different(edited: Checkpoint, base: Checkpoint) -> tuple[str, ...]:
    ours, theirs = edited.weights(UNET), base.weights(UNET)
    return tuple(
        name
        for name in sorted(ours.entries)
        if not torch.equal(ours.read(name).to(torch.float64), theirs.read(name).to(torch.float64))
    )
