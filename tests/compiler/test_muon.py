from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compiler.muon import Muon, orthogonal

RATE = 0.01


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (40, 24)])
def test_its_steps_are_those_of_the_library_up_to_the_precision_of_bfloat16(shape: tuple[int, int]) -> None:
    ours, theirs = nn.Parameter(_noise(*shape)), nn.Parameter(_noise(*shape))
    optimiser = Muon([ours])
    reference = torch.optim.Muon([theirs], lr=RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    start = ours.detach().clone()
    for step in range(4):
        ours.grad, theirs.grad = (_noise(*shape, seed=1 + step) for _ in range(2))
        optimiser.step(RATE)
        reference.step()
    change, expected = ours.detach() - start, theirs.detach() - start
    assert float((change - expected).norm() / expected.norm()) < 0.03


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_loses_the_sizes(
    rows: int, columns: int, seed: int
) -> None:
    matrix = _noise(rows, columns, seed=seed)
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    along = left.T @ orthogonal(matrix) @ right.T
    paces = along.diagonal()
    assert float((along - torch.diag(paces)).abs().max()) < 1e-3
    large = sizes > 0.02 * sizes.max()  # what is smaller takes more turns
    assert bool(((paces[large] > 0.5) & (paces[large] < 1.3)).all())


def test_a_matrix_without_a_gradient_stays() -> None:
    still, moving = nn.Parameter(_noise(4, 6)), nn.Parameter(_noise(4, 6))
    moving.grad = _noise(4, 6, seed=1)
    Muon([still, moving]).step(RATE)
    assert torch.equal(still, _noise(4, 6))
    assert not torch.equal(moving, _noise(4, 6))


def test_a_gradient_of_nothing_changes_nothing() -> None:
    weight = nn.Parameter(_noise(4, 6))
    weight.grad = torch.zeros_like(weight)
    Muon([weight]).step(RATE)
    assert torch.equal(weight, _noise(4, 6))
