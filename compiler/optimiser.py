"""The optimisers of the distil engine: Adam, and Muon for weights that are matrices.

Muon (Jordan et al. 2024) turns the momentum of each matrix's gradient into the nearest orthogonal matrix:
every direction that the gradient has is learned at one pace, also those that Adam leaves for later because
their gradients are small. Its steps are scaled to the size of Adam's (Liu et al. 2025, Moonlight), so that
both take learning rates of one size. Decay is towards the base's weights, not towards zero (L2-SP, Li et al.
2018): where training says nothing, an edit is to be nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from compiler.muon import Muon

OptimiserKind: TypeAlias = Literal["adam", "muon"]


class Optimiser:
    """Adam for all weights; or Muon for matrices and convolutions, and Adam for the vectors beside them."""

    def __init__(self, kind: OptimiserKind, weights: Sequence[nn.Parameter], learning_rate: float) -> None:
        shaped = [weight for weight in weights if kind == "muon" and weight.ndim >= 2]
        # A convolution is learned as the matrix (out, everything else), which shares its storage.
        self._shaped = [(weight, nn.Parameter(weight.detach().view(len(weight), -1))) for weight in shaped]
        others = [weight for weight in weights if kind == "adam" or weight.ndim < 2]
        self._adam = torch.optim.Adam(others, lr=learning_rate, fused=True) if others else None
        self._muon = Muon([matrix for _, matrix in self._shaped])

    def step(self, learning_rate: float) -> None:
        """Change the weights by their gradients, at this rate, and forget the gradients."""
        for weight, matrix in self._shaped:
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
            weight.grad = None
        self._muon.step(learning_rate)
        if self._adam:
            self._adam.param_groups[0]["lr"] = learning_rate
            self._adam.step()
            self._adam.zero_grad(set_to_none=True)


@torch.no_grad()
def lead_back(weights: Mapping[str, nn.Parameter], start: Mapping[str, Tensor], share: float) -> None:
    """Take back `share` of what each of the weights has changed since `start`; at most all of it."""
    for name, weight in weights.items():
        weight.lerp_(start[name], min(1.0, share))
