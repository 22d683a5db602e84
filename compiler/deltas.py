"""Deltas: what a pass changed, as fp32 tensors by U-Net name (new value minus old)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compiler.safetensors_file import TensorEntry, encode_header, read_header, read_tensor

Deltas = dict[str, torch.Tensor]


class DeltaFault(Exception):
    """A pass broke its declaration: an internal fault, told to the pass's author."""


def save(deltas: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write fp32 `deltas` as safetensors; equal deltas give equal bytes. `OSError` where the disk refuses."""
    entries = [
        TensorEntry(name, "F32", tuple(deltas[name].shape), path, 0, 4 * deltas[name].numel())
        for name in sorted(deltas)
    ]
    with path.open("wb") as file:
        file.write(encode_header(entries))
        for entry in entries:
            file.write(deltas[entry.name].detach().to("cpu", torch.float32).contiguous().numpy().data)
    path.chmod(0o644)


def load(path: Path) -> Deltas:
    """Read what `save` wrote; tensors on the CPU."""
    entries, _ = read_header(path)
    return {name: read_tensor(entries[name]) for name in sorted(entries)}


def check(
    deltas: Mapping[str, torch.Tensor], targets: Iterable[str], entries: Mapping[str, TensorEntry]
) -> None:
    """Raise `DeltaFault` unless every change is of a declared target, in its shape, fp32 and finite."""
    undeclared = sorted(set(deltas) - set(targets))
    if undeclared:
        raise DeltaFault(
            f"it changed {_some(undeclared)}, which it never declared; return these in targets()"
        )
    for name, delta in deltas.items():
        if name not in entries:
            raise DeltaFault(f"the base has no tensor {name}")
        if tuple(delta.shape) != tuple(entries[name].shape):
            raise DeltaFault(f"{name} is {tuple(delta.shape)}, in the base {tuple(entries[name].shape)}")
        if delta.dtype != torch.float32:
            raise DeltaFault(f"{name} is {delta.dtype}; deltas are torch.float32")
        if not torch.isfinite(delta).all():
            raise DeltaFault(f"{name} is not finite")


def added(upstream: Mapping[str, torch.Tensor], deltas: Mapping[str, torch.Tensor]) -> Deltas:
    """The sum of both; neither argument is changed."""
    total = dict(upstream)
    for name, delta in deltas.items():
        total[name] = total[name] + delta if name in total else delta
    return total


def between(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], share: float) -> Deltas:
    """`share` of the way from the first to the second, of the same tensors: 0 is the first, 1 the second."""
    return {name: torch.lerp(first[name], second[name], share) for name in second}


def parts(runs: Sequence[Mapping[str, torch.Tensor]]) -> Deltas:
    """Each run's own change of every tensor that several runs moved, as `<run>.<tensor>`, runs from 0.

    A tensor that one run moved has that run's change as its total. A sum of floats cannot be taken apart
    again, so without these no single edit could be subtracted exactly.
    """
    movers = Counter(name for run in runs for name in run)
    return {
        f"{number}.{name}": delta
        for number, run in enumerate(runs)
        for name, delta in run.items()
        if movers[name] > 1
    }


def statistics(name: str, delta: torch.Tensor, before: torch.Tensor) -> dict[str, Any]:
    """How far a tensor moved: Frobenius norm, also relative to `before`; largest change; count of changes."""
    norm = float(torch.linalg.vector_norm(delta.double()))
    base = float(torch.linalg.vector_norm(before.double()))
    return {
        "tensor": name,
        "shape": list(delta.shape),
        "norm": _short(norm),
        "relative": _short(norm / base) if base else None,
        "max_abs": _short(float(delta.abs().max())) if delta.numel() else 0.0,
        "changed": int(torch.count_nonzero(delta)),
        "parameters": delta.numel(),
    }


def _short(value: float) -> float:
    """Six digits: all that a reader uses, and robust against another order of summation."""
    return float(f"{value:.6g}")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
