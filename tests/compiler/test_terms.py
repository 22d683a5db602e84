from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.terms import LEAST_CHANGE, level

SIZES = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=6)


def _rows(sizes: list[float], each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`each` rows at every timestep; what changes there is of the given size."""
    timestep = torch.arange(len(sizes)).repeat_interleave(each)
    signs = torch.tensor([1.0, -1.0]).repeat(len(timestep) * 2)[: len(timestep) * 4].reshape(-1, 1, 2, 2)
    return timestep, signs * torch.tensor(sizes)[timestep][:, None, None, None]


@given(SIZES, st.integers(1, 4))
def test_every_timestep_counts_alike_unless_next_to_nothing_changes_there(
    sizes: list[float], each: int
) -> None:
    timestep, change = _rows(sizes, each)
    weights = level(timestep, change)
    counted = weights * change.square().mean(dim=(1, 2, 3))
    largest = max(sizes) ** 2
    shares = [float(counted[timestep == t].mean()) for t in range(len(sizes))]
    for size, share in zip(sizes, shares, strict=True):
        expected = min(1.0, size**2 / (LEAST_CHANGE * largest)) * max(shares)
        assert abs(share - expected) < 1e-3 * max(shares)
    assert abs(float(weights.mean()) - 1.0) < 1e-4


def test_timesteps_without_any_change_count_as_the_mean_row_does() -> None:
    weights = level(*_rows([0.0, 0.5, 1.0], 2))
    assert torch.equal(weights[:2], torch.ones(2))
    assert torch.allclose(weights[2:].mean(), torch.tensor(1.0))
    assert torch.equal(level(*_rows([0.0, 0.0], 3)), torch.ones(6))


def test_order_of_rows_does_not_matter() -> None:
    timestep, change = _rows([0.2, 1.0, 3.0], 2)
    order = torch.tensor([4, 0, 3, 1, 5, 2])
    assert torch.allclose(level(timestep[order], change[order]), level(timestep, change)[order])
