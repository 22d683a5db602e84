"""What carries a shift in the U-Net: existing biases, or text values that the empty prompt leaves shut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compiler.text import TextEncoder

NULL = 1e-5  # singular values below this part of the largest count as zero
RIDGE = 1e-2  # of the mean energy of the fitted tokens


class Carrier(ABC):
    """Turns vectors, by tensor name, into changes of U-Net tensors; differentiable."""

    both_halves: bool
    """Whether the empty half of classifier-free guidance moves with the other."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    @abstractmethod
    def length(self, weight: Tensor) -> int:
        """Length of the vector that belongs to a tensor."""

    @abstractmethod
    def deltas(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Changes in the tensors' own shapes."""


class Biases(Carrier):
    """Vectors are added to bias vectors: a bias acts in both halves of classifier-free guidance."""

    both_halves = True

    def length(self, weight: Tensor) -> int:
        return len(weight)

    def deltas(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(vectors)


class TextGate(Carrier):
    """Vectors times a gate, (text width,), are added to value matrices of cross-attention.

    The gate is zero on every token of the empty prompt and about one on the words of others.
    """

    both_halves = False

    def __init__(self, names: Sequence[str], gate: Tensor) -> None:
        super().__init__(names)
        self.gate = gate

    def length(self, weight: Tensor) -> int:
        return weight.shape[0]

    def deltas(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.outer(vector, self.gate) for name, vector in vectors.items()}


def text_gate(text: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """The gate k of (text width,): k e = 0 for every position of the empty prompt, k e = 1 fitted on words.

    Least squares over the tokens of `prompts` after the first, padding included, in the null space of the
    empty prompt's embeddings, in float64. Raises ValueError where the text width leaves no null space.
    """
    empty = text.encode([""])[0].double()
    _, sizes, rows = torch.linalg.svd(empty, full_matrices=True)
    rank = int((sizes > NULL * sizes[0]).sum()) if len(sizes) else 0
    null = rows[rank:]
    if not len(null):
        raise ValueError("the empty prompt's embeddings fill the whole text width")
    words = text.encode([prompt for prompt in prompts if prompt])[:, 1:].double().flatten(0, 1)
    inside = words @ null.T
    square = inside.T @ inside
    ridge = RIDGE * square.diagonal().mean()
    fitted = torch.linalg.solve(
        square + ridge * torch.eye(len(square), dtype=square.dtype, device=square.device),
        inside.sum(0),
    )
    gate: Tensor = (fitted @ null).float()
    return gate
