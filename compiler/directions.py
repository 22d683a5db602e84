"""A direction as a value and as a small file of its own: vectors for existing weights, and their origin.

The file is safetensors: one fp32 vector for each bias and, where text opens a gate, each value matrix, under
the U-Net's own names; the gate; and one metadata key with the facts as JSON, so that equal directions are
equal bytes. Reading names and facts needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.safetensors_file import TensorEntry, read_header, read_metadata, read_tensor
from editspec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
KEY = "excise_direction"  # a single key: the library writes several in random order
GATE = "gate"


@dataclass(frozen=True)
class Found:
    """A direction: fp32 vectors by U-Net tensor name, as learned for strength 1; JSON facts about it.

    A vector of a bias has the bias's length, one of a value matrix (out, text width) is (out,) and multiplied
    with `gate` (text width,).
    """

    vectors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)
    gate: Tensor | None = None

    def deltas(self, strength: float = 1.0) -> dict[str, Tensor]:
        """Changes of U-Net tensors at this strength, negative too; fp32."""
        from compiler.carriers import carried

        return {name: strength * carried(vector, name, self.gate) for name, vector in self.vectors.items()}


def save_direction(direction: Found, path: Path) -> None:
    """Write `direction` to `path`; equal directions give equal bytes."""
    from safetensors.torch import save_file

    tensors = {name: vector.detach().cpu().float().contiguous() for name, vector in direction.vectors.items()}
    if direction.gate is not None:
        tensors[GATE] = direction.gate.detach().cpu().float().contiguous()
    facts = {"format": FORMAT, **direction.facts}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    save_file(tensors, path, metadata={KEY: text})
    path.chmod(0o644)


def load_direction(path: Path) -> Found:
    """Read what `save_direction` wrote. Raises InputError for anything else."""
    entries, facts = direction_header(path)
    vectors = {name: read_tensor(entry).float() for name, entry in sorted(entries.items())}
    for name, vector in vectors.items():
        if not vector.isfinite().all():
            raise InputError(str(path), f"{name} is not finite", "learn the direction again")
    gate = vectors.pop(GATE, None)
    return Found(vectors, facts, gate)


def direction_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """Tensors and facts of a direction file, without reading a tensor. Raises InputError."""
    remedy = "give a file that 'excise direction' wrote, or a published .pth"
    entries, _ = read_header(path)
    try:
        facts = json.loads(read_metadata(path).get(KEY, "null"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(str(path), "is no direction file of this version", remedy)
    if not entries or any(len(entry.shape) != 1 or entry.dtype != "F32" for entry in entries.values()):
        raise InputError(str(path), "is no direction file: it holds other things than fp32 vectors", remedy)
    return dict(entries), facts


def misfit(entries: Mapping[str, TensorEntry], unet: Mapping[str, TensorEntry]) -> str | None:
    """Why a direction file's vectors cannot be added to this U-Net, or None."""
    gate = entries.get(GATE)
    for name, entry in entries.items():
        if name == GATE:
            continue
        target = unet.get(name)
        if target is None:
            return f"this base has no '{name}'"
        wanted = entry.shape if gate is None or name.endswith(".bias") else (*entry.shape, *gate.shape)
        if tuple(target.shape) != tuple(wanted):
            return f"'{name}' is {list(target.shape)} in this base, the direction is for {list(wanted)}"
    return None
