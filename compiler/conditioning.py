"""What a U-Net reads beside latents and timestep: prompt embeddings; for SDXL, sizes and pooled text too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.text import TextEncoder


@dataclass(frozen=True)
class Conditioning:
    """One row for each prompt: hidden (n, window, width); SDXL also pooled (n, d) and time_ids (n, 6)."""

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def rows(self, index: Tensor | Sequence[int]) -> Conditioning:
        """The rows at `index`, in that order, with repeats: (len(index), ...)."""
        at = torch.as_tensor(index, dtype=torch.int64, device=self.hidden.device)
        return Conditioning(*(None if part is None else part[at] for part in self._parts()))  # type: ignore[arg-type]

    def expand(self, count: int) -> Conditioning:
        """A single row repeated `count` times."""
        return self.rows([0] * count)

    def join(self, other: Conditioning) -> Conditioning:
        """The rows of this, then those of `other`."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        parts = [None if a is None or b is None else torch.cat([a, b]) for a, b in pairs]
        return Conditioning(*parts)  # type: ignore[arg-type]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `UNet2DConditionModel.forward`."""
        if self.pooled is None:
            return {"encoder_hidden_states": self.hidden}
        added = {"text_embeds": self.pooled, "time_ids": self.time_ids}
        return {"encoder_hidden_states": self.hidden, "added_cond_kwargs": added}

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.pooled, self.time_ids


def encode(text: TextEncoder, prompts: Sequence[str], checkpoint: Checkpoint) -> Conditioning:
    """What the U-Net reads for each of `prompts`, as the stock pipeline prepares it, one row each.

    A row's bits do not depend on the other prompts: what is cached must not depend on what came with it.
    """
    return _with_sizes(text.encode(prompts), [text.encode_pooled([prompt]) for prompt in prompts], checkpoint)


def encode_unconditional(text: TextEncoder, checkpoint: Checkpoint) -> Conditioning:
    """The one row of the unconditional branch: the empty prompt, or zeros where the checkpoint says so."""
    hidden = text.unconditional()
    pooled = text.encode_pooled([""])
    if pooled is not None and not hidden.any():
        pooled = torch.zeros_like(pooled)
    return _with_sizes(hidden, [pooled], checkpoint)


def _with_sizes(hidden: Tensor, pooled: Sequence[Tensor | None], checkpoint: Checkpoint) -> Conditioning:
    """Add SDXL's micro-conditioning: original size, no crop, target size, all at native resolution."""
    rows = [row for row in pooled if row is not None]
    if not rows:
        return Conditioning(hidden)
    downsamplings = len(checkpoint.config("vae")["block_out_channels"]) - 1
    pixels = float(checkpoint.config("unet")["sample_size"] * 2**downsamplings)
    time_ids = torch.tensor([[pixels, pixels, 0.0, 0.0, pixels, pixels]], device=hidden.device)
    return Conditioning(hidden, torch.cat(rows).to(hidden.dtype), time_ids.repeat(len(hidden), 1))
