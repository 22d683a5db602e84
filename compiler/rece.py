"""Closed-form erasure in rounds: RECE, Reliable and Efficient Concept Erasure (Gong et al. 2024).

After a solve some embedding may still give, through the edited matrices, what the concept gave before. It is
itself a solution of a least-squares problem; each round finds it for every edited column and sends it where
that column went. What is preserved stays in the solve as before.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compiler.columns import Columns
from compiler.solve import come_back, revived, solve

ROUNDS = 3
RIDGE = 0.1  # of the search for embeddings, as a share of the mean eigenvalue of sum W^T W


class Rounds:
    """The solve of one set of columns, once or in rounds. `text_map` is M of W - W_0 = W_0 M so far.

    `came_back` says for each round how much of the concepts an attacker would have had back before it.
    """

    def __init__(self, columns: Columns, ridge: float, basis: Tensor | None) -> None:
        self._columns, self._ridge, self._basis = columns, ridge, basis
        self.came_back: list[float] = []
        self.text_map = self._solved(columns.edited, columns.anchors, columns.weights)

    def harden(self, gram: Tensor) -> None:
        """`ROUNDS` rounds for all matrices together; `gram` (d, d) is their `sum_of_squares`."""
        own = self._columns
        gram = gram.to(own.edited.device)
        edited, anchors, weights = own.edited, own.anchors, own.weights
        for _ in range(ROUNDS):
            found = revived(gram, self.text_map, own.edited, ridge=RIDGE)
            self.came_back.append(float(f"{come_back(gram, self.text_map, own.edited, found):.4g}"))
            edited = torch.cat([edited, found], dim=1)
            anchors = torch.cat([anchors, own.anchors], dim=1)
            weights = torch.cat([weights, own.weights])
            self.text_map = self._solved(edited, anchors, weights)

    def _solved(self, edited: Tensor, anchors: Tensor, weights: Tensor) -> Tensor:
        own = self._columns
        if self._basis is not None:
            solution = solve(edited, ridge=self._ridge, weights=weights, basis=self._basis)
        else:
            solution = solve(
                edited,
                ridge=self._ridge,
                weights=weights,
                preserved=own.preserved,
                preserved_weights=own.preserved_weights,
            )
        return solution.text_map(anchors)


def sum_of_squares(weights: Iterable[Tensor]) -> Tensor:
    """Sum of W^T W over matrices (out, d) of one text width: (d, d) float64."""
    return torch.stack([weight.double().T @ weight.double() for weight in weights]).sum(0)
