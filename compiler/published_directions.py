"""Imports published h-space vectors (Li et al. 2024): columns over channels x side x side, and their names.

A published vector is spatial and was added to the text half of guidance alone. What a bias can carry is its
mean over positions; what all vectors of a file have in common is drift of their training, not meaning, and
comes off; and the size is searched anew for both halves. How much energy each step keeps is reported.
"""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editspec.errors import InputError, listed, quoted

if TYPE_CHECKING:
    from torch import Tensor

NAMES = "concept_dict.json"  # published beside the vectors: concept -> column
LARGEST = 2**31  # bytes of a file that is read at all


@dataclass(frozen=True)
class Published:
    """One imported vector: as published (channels, side, side), and what a bias can carry of it (channels,).

    `energy_of_mean` is the part of the published energy in the mean over positions, `energy_kept` what is
    left of it after the common direction came off.
    """

    concept: str
    spatial: Tensor
    channels: Tensor
    energy_of_mean: float
    energy_kept: float


def concepts_of(path: Path) -> dict[str, int]:
    """Names in the concept dictionary beside `path`, with their columns; no torch. Raises InputError."""
    names = path.parent / NAMES
    where = str(names)
    try:
        found: Any = json.loads(names.read_text("utf-8"))
    except FileNotFoundError as error:
        remedy = f'put it there: {{"first concept": 0, "second concept": 1}} for the columns of {path.name}'
        raise InputError(where, "the concept dictionary is missing", remedy) from error
    except (OSError, ValueError) as error:
        raise InputError(where, f"cannot be read: {error}") from error
    columns = list(found.values()) if isinstance(found, dict) else []
    whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in columns)
    if not columns or not whole or len(set(columns)) != len(columns):
        raise InputError(where, "is no concept dictionary: concepts with one column each", "fetch it again")
    return dict(found)


def read_published(path: Path, concept: str | None, channels: int, side: int) -> Published:
    """The vector of `concept` in a published file, for a mid block of (channels, side, side).

    `concept` may be None where the file holds one. Raises InputError for all that cannot be such a file.
    """
    names = concepts_of(path)
    if concept is None and len(names) == 1:
        (concept,) = names
    if concept is None or concept not in names:
        what = "names no concept of this file" if concept is None else f"no concept {quoted(concept)}"
        raise InputError(str(path), what, f"there are {listed(sorted(names))}")
    matrix = _matrix(path)
    rows, columns = matrix.shape
    size = channels * side * side
    if rows != size:
        turned = ", with rows and columns exchanged" if columns == size else ""
        what = (
            f"holds {rows} x {columns} numbers{turned}; vectors for this base's mid block "
            f"({channels} channels, {side} x {side}) have {size} rows"
        )
        raise InputError(str(path), what, "import vectors that were learned on this architecture")
    if columns != len(names) or max(names.values()) >= columns:
        what = f"holds {columns} vectors, its concept dictionary names {len(names)}"
        raise InputError(str(path), what, "give the dictionary that belongs to it")
    if not matrix.isfinite().all():
        raise InputError(str(path), "holds numbers that are not finite", "fetch it again")
    spatial = matrix.T.reshape(columns, channels, side, side)
    column = names[concept]
    if not spatial[column].any():
        raise InputError(str(path), f"the vector of {quoted(concept)} is zero", "choose another concept")
    means = spatial.mean(dim=(2, 3))
    kept = without_common(means)[column]
    energy = float(spatial[column].square().sum())
    area = side * side
    return Published(
        concept,
        spatial[column].float(),
        kept.float(),
        float(means[column].square().sum()) * area / energy,
        float(kept.square().sum()) * area / energy,
    )


def without_common(vectors: Tensor) -> Tensor:
    """Vectors (n, channels) without the direction of their mean; a single vector has nothing in common."""
    if len(vectors) < 2:
        return vectors
    mean = vectors.mean(0)
    norm = mean.norm()
    if not norm:
        return vectors
    common = mean / norm
    left: Tensor = vectors - (vectors @ common)[:, None] * common
    return left


def _matrix(path: Path) -> Tensor:
    """The one matrix of a file, float64; nothing in the file is executed."""
    import torch

    where = str(path)
    if path.stat().st_size > LARGEST:
        raise InputError(where, f"is larger than {LARGEST >> 20} MiB: no file of directions")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"holds no plain tensors: {reason}"
        raise InputError(where, what, "a file that needs to run code to be read is refused") from error
    tensors = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    matrices = [t for t in tensors if isinstance(t, torch.Tensor) and t.ndim == 2 and t.is_floating_point()]
    if len(tensors) != 1 or len(matrices) != 1:
        what = f"is no file of directions: {_described(loaded)}"
        raise InputError(where, what, "such a file holds one matrix alone")
    matrix: Tensor = matrices[0].double()
    return matrix


def _described(loaded: Any) -> str:
    """What was found instead, in a few words."""
    import torch

    if isinstance(loaded, torch.Tensor):
        return f"a tensor of {math.prod(loaded.shape)} numbers, shape {list(loaded.shape)}"
    if isinstance(loaded, dict):
        return f"a dictionary of {len(loaded)} entries"
    return type(loaded).__name__
