from __future__ import annotations

import torch

from compiler.columns import Columns
from compiler.rece import RIDGE, ROUNDS, Rounds, sum_of_squares
from compiler.solve import come_back, revived


def _problem(width: int = 24, edited: int = 3, kept: int = 6) -> tuple[Columns, torch.Tensor]:
    random = torch.Generator().manual_seed(1)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64)

    columns = Columns(
        edited=normal(width, edited),
        anchors=normal(width, edited),
        weights=torch.ones(edited, dtype=torch.float64),
        preserved=normal(width, kept),
        preserved_weights=torch.ones(kept, dtype=torch.float64),
        exact_padding=True,
    )
    return columns, sum_of_squares([normal(16, width).float() for _ in range(3)])


def test_what_is_found_is_the_least_squares_answer() -> None:
    columns, gram = _problem()
    text_map = Rounds(columns, 0.1, None).text_map
    found = revived(gram, text_map, columns.edited, ridge=RIDGE)
    edited = torch.eye(len(gram), dtype=torch.float64) + text_map
    # The gradient of |W c' - W_0 c|^2 + ridge |c'|^2 is zero there.
    floor = RIDGE * float(gram.diagonal().mean())
    gradient = edited.T @ gram @ (edited @ found - columns.edited) + floor * found
    assert float(gradient.abs().max()) < 1e-8


def test_rounds_leave_an_attacker_less_and_keep_what_is_preserved() -> None:
    columns, gram = _problem()
    rounds = Rounds(columns, 0.1, None)
    once = rounds.text_map
    rounds.harden(gram)
    assert len(rounds.came_back) == ROUNDS
    assert rounds.came_back[0] > 0.3, "one solve alone can be undone"
    found = revived(gram, rounds.text_map, columns.edited, ridge=RIDGE)
    assert come_back(gram, rounds.text_map, columns.edited, found) < 0.8 * rounds.came_back[0]
    for text_map in (once, rounds.text_map):
        moved = (text_map @ columns.preserved).norm() / columns.preserved.norm()
        assert float(moved) < 0.15
        left = (text_map @ columns.edited - (columns.anchors - columns.edited)).norm()
        assert float(left) < 0.5 * float((columns.anchors - columns.edited).norm())
