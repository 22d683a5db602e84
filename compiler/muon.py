"""Muon (Jordan et al. 2024) in the precision that the device is good at.

The library's own, torch.optim.Muon, orthogonalises in bfloat16 everywhere. CPUs without units for it emulate
it, far slower than float32, and then most of a training is spent there. Otherwise both are the same: a test
holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

QUINTIC = 3.4445, -4.7750, 2.0315  # steepest at 0: five turns bring singular values near 1, not exactly to it
TURNS = 5
MOMENTUM = 0.95
ADAM_SIZE = 0.2  # root mean square of Adam's steps, in units of the learning rate (Liu et al. 2025, eq. 4)


class Muon:
    """Nesterov momentum, orthogonalised; steps of the size of Adam's. For matrices only, without decay."""

    def __init__(self, matrices: Sequence[nn.Parameter]) -> None:
        self._momentum = [(matrix, torch.zeros_like(matrix)) for matrix in matrices]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Change each matrix that has a gradient, and forget the gradient."""
        for matrix, momentum in self._momentum:
            if matrix.grad is None:
                continue
            momentum.lerp_(matrix.grad, 1 - MOMENTUM)
            change = orthogonal(matrix.grad.lerp(momentum, MOMENTUM)).to(matrix.dtype)
            matrix.add_(change, alpha=-learning_rate * ADAM_SIZE * max(matrix.shape) ** 0.5)
            matrix.grad = None


@torch.no_grad()
def orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to one of shape (rows, columns), nearly: singular values .7 to 1.2.

    A Newton-Schulz iteration, in bfloat16 on CUDA devices and in float32 elsewhere.
    """
    found: Tensor = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    tall = len(found) > found.shape[1]
    found = found.T if tall else found  # the smaller Gram matrix
    found = (found / found.norm().clamp(min=1e-7)).contiguous()
    linear, cubic, quintic = QUINTIC
    for _ in range(TURNS):
        gram = found @ found.T
        of_gram = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic)
        found = torch.addmm(found, of_gram, found, beta=linear)
    return found.T if tall else found
