"""An edit as a LoRA: W + B A, exact where the change has a low rank, the best of its rank elsewhere.

Written under PEFT's names, as diffusers' `load_lora_weights` reads them. All factors are padded with zeros to
one rank, so that no reader needs a rank or alpha for each module: alpha is the rank, the scale 1. The change
of a bias goes into `lora_B.bias`. A norm's weights have no place in a LoRA and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compiler import deltas
from compiler.checkpoint import UNET
from editspec.errors import InputError
from exporters.changes import Changes, changes_of
from exporters.destination import export_file, record

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.progress import Progress

RANK = 64
EXACT = 1e-5  # a relative error that fp32 changes have from their own rounding
PREFIX = "unet."


@dataclass(frozen=True)
class Factored:
    """One change as B A: `up` is B (out, rank), `down` is A (rank, in); errors are Frobenius norms."""

    up: Tensor
    down: Tensor
    norm: float
    error: float

    @property
    def rank(self) -> int:
        """Number of columns of B."""
        return self.up.shape[1]

    @property
    def relative_error(self) -> float:
        """|change - B A| / |change|, 0 for no change."""
        return self.error / self.norm if self.norm else 0.0


def export_lora(
    edited: Checkpoint,
    out: Path,
    *,
    base: Checkpoint | None = None,
    rank: int = RANK,
    biases: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the changes of `edited` as a LoRA of at most `rank` to the file `out`.

    Returns its record, which lies beside it and states the error of every module and of the whole. `biases`
    False leaves the changes of biases out: PEFT cannot fuse them, and other programs do not read them.
    `InputError` where nothing can be expressed so.
    """
    from compiler.progress import Silent

    if rank < 1:
        raise InputError("--rank", f"{rank} is no rank", "give a number from 1")
    changes = changes_of(edited, base)
    weights, moved_biases, left_out = _sorted_out(changes, biases)
    if not weights and not moved_biases:
        what = "changes nothing that a LoRA can hold" if len(changes) else "has no changes"
        raise InputError(str(edited.root), what, "export a delta file instead")
    factors: dict[str, Factored] = {}
    with (progress or Silent()).task("factor", total=len(weights)) as task:
        for name in weights:
            factors[name] = factor(changes[name], rank)
            task.advance(1)
    tensors = _tensors(factors, {name: changes[name] for name in moved_biases}, edited)
    lost = {name: _norm(changes[name]) for name in left_out}
    needed = sum(4 * tensor.numel() for tensor in tensors.values()) + 2**20
    with export_file(out, needed_bytes=needed, force=force) as made:
        deltas.save(tensors, made.part)
        made.facts = record("lora", edited, _facts(changes, factors, moved_biases, lost))
    return made.facts


def factor(change: Tensor, rank: int) -> Factored:
    """The best approximation of rank `rank` or less (Eckart & Young 1936), stopping where it is exact.

    `change` is (out, in) or (out, in, kh, kw), read as (out, in * kh * kw). The singular vectors of the
    shorter side come from its Gram matrix in fp64; the error is that of the fp32 factors returned.
    """
    matrix = change.reshape(change.shape[0], -1).double()
    norm = _norm(matrix)
    if not norm:
        return Factored(torch.zeros(len(matrix), 1), torch.zeros(1, matrix.shape[1]), 0.0, 0.0)
    wide = matrix.shape[0] <= matrix.shape[1]
    short = matrix if wide else matrix.T
    squares, vectors = torch.linalg.eigh(short @ short.T)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    tails = (squares.sum() - squares.cumsum(0)).clamp(min=0).sqrt()  # what rank 1, 2, ... would leave
    enough = int((tails > EXACT / 10 * norm).sum()) + 1
    kept = min(rank, enough, len(squares))
    one = vectors[:, :kept]
    other = one.T @ short
    scale = torch.linalg.vector_norm(other, dim=1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    one, other = (one * scale).float(), (other / scale[:, None]).float()  # both of one size: fit for fp16
    up, down = (one, other) if wide else (other.T, one.T)
    error = _norm(matrix - up.double() @ down.double())
    return Factored(up.contiguous(), down.contiguous(), norm, error)


def _sorted_out(changes: Changes, biases: bool) -> tuple[list[str], list[str], list[str]]:
    """Names of changed matrices and kernels, of changed biases that have a place, and of the rest."""
    weights: list[str] = []
    moved: list[str] = []
    left_out: list[str] = []
    for name in changes:
        module, _, kind = name.rpartition(".")
        entries = changes.edited.weights(UNET).entries
        weight = entries.get(f"{module}.weight")
        if weight is None or len(weight.shape) not in (2, 4):
            left_out.append(name)
        elif kind == "weight":
            weights.append(name)
        else:
            (moved if biases and kind == "bias" else left_out).append(name)
    return weights, moved, left_out


def _tensors(
    factors: Mapping[str, Factored], biases: Mapping[str, Tensor], edited: Checkpoint
) -> dict[str, Tensor]:
    """Everything the file holds, by PEFT's names."""
    rank = max((one.rank for one in factors.values()), default=1)
    modules = {name.rpartition(".")[0] for name in (*factors, *biases)}
    found: dict[str, Tensor] = {}
    for module in sorted(modules):
        shape = edited.weights(UNET).entries[f"{module}.weight"].shape
        up, down = torch.zeros(shape[0], rank), torch.zeros(rank, math.prod(shape[1:]))
        if (one := factors.get(f"{module}.weight")) is not None:
            up[:, : one.rank], down[: one.rank] = one.up, one.down
        name = f"{PREFIX}{module}"
        found[f"{name}.lora_A.weight"] = down.reshape(rank, *shape[1:])
        found[f"{name}.lora_B.weight"] = up.reshape(*up.shape, *(1 for _ in shape[2:]))
        if biases:  # PEFT wants a bias in every module or in none
            found[f"{name}.lora_B.bias"] = biases.get(f"{module}.bias", torch.zeros(shape[0]))
    return found


def _facts(
    changes: Changes, factors: Mapping[str, Factored], biases: list[str], lost: Mapping[str, float]
) -> dict[str, Any]:
    held = sum(one.norm**2 for one in factors.values()) + sum(_norm(changes[name]) ** 2 for name in biases)
    total = math.sqrt(held + sum(norm**2 for norm in lost.values()))
    error = math.sqrt(sum(one.error**2 for one in factors.values()) + sum(norm**2 for norm in lost.values()))
    modules = {
        name.rpartition(".")[0]: {
            "rank": one.rank,
            "relative_error": _short(one.relative_error),
            "exact": one.relative_error <= EXACT,
        }
        for name, one in factors.items()
    }
    return {
        "origin": changes.origin,
        "base": changes.base_record(),
        "rank": max((one.rank for one in factors.values()), default=1),
        "relative_error": _short(error / total) if total else 0.0,
        "exact": bool(total) and error / total <= EXACT,
        "modules": modules,
        "biases": biases,
        "left_out": {name: _short(norm / total) for name, norm in lost.items()},
    }


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
