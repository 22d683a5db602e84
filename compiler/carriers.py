"""What carries a shift in the U-Net: existing biases, text values that a gate opens, or both together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Carrier(ABC):
    """Turns vectors, by tensor name, into changes of U-Net tensors; differentiable."""

    both_halves: bool
    """Whether the empty half of classifier-free guidance moves with the other."""

    gate: Tensor | None = None
    """(text width,): what the vectors of value matrices are multiplied with, where there are any."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    @abstractmethod
    def deltas(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Changes in the tensors' own shapes: of vectors that are as long as what the tensors give."""


class Biases(Carrier):
    """Vectors are added to bias vectors: a bias acts in both halves of classifier-free guidance."""

    both_halves = True

    def deltas(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(vectors)


class TextGate(Carrier):
    """Vectors times a gate, (text width,), are added to value matrices of cross-attention.

    The gate is zero on every token of the empty prompt and about one on the words of others.
    """

    both_halves = False

    def __init__(self, names: Sequence[str], gate: Tensor) -> None:
        super().__init__(names)
        self.gate: Tensor = gate

    def deltas(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: carried(vector, name, self.gate) for name, vector in vectors.items()}


class BiasesAndWords(TextGate):
    """Vectors are added to biases and, times a gate that some words open, to value matrices.

    A bias is the same whatever the prompt says, so it takes what is much alike along; what only some words
    open does not.
    """

    both_halves = True


def carried(vector: Tensor, name: str, gate: Tensor | None) -> Tensor:
    """The change of the tensor `name`: of a bias the vector itself, of a value matrix vector x gate."""
    if name.endswith(".bias"):
        return vector
    assert gate is not None
    return torch.outer(vector, gate)
