"""The closed form equals the textbook formula, lands where it should and leaves the rest alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.solve import edit_columns, free_of, preserved_basis, solve

SHAPES = st.tuples(
    st.integers(2, 24),  # width d
    st.integers(1, 40),  # edited columns k, also more than the width
    st.integers(0, 40),  # preserved columns m
    st.integers(1, 12),  # outputs
    st.integers(0, 2**31),
)


def textbook(
    weight: Tensor, columns: Tensor, wanted: Tensor, weights: Tensor, preserved: Tensor, ridge: float
) -> Tensor:
    """UCE, eq. 7, dense and in float64: W = (sum v c^T + ridge W_0) (sum c c^T + ridge I)^-1."""
    weight, columns, wanted, preserved = (x.double() for x in (weight, columns, wanted, preserved))
    left = (wanted * weights) @ columns.T + weight @ preserved @ preserved.T + ridge * weight
    right = (columns * weights) @ columns.T + preserved @ preserved.T
    right = right + ridge * torch.eye(len(columns), dtype=torch.float64)
    change: Tensor = left @ torch.linalg.inv(right) - weight
    return change


def problem(shape: tuple[int, int, int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    width, k, m, outputs, seed = shape
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    weights = torch.rand(k, generator=random, dtype=torch.float64) + 0.5
    return normal(outputs, width), normal(width, k), normal(outputs, k), weights, normal(width, m)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([0.01, 0.1, 1.0]))
def test_the_change_equals_the_textbook_formula(shape: tuple[int, int, int, int, int], ridge: float) -> None:
    weight, columns, wanted, weights, preserved = problem(shape)
    solution = solve(columns, ridge=ridge, weights=weights, preserved=preserved)
    expected = textbook(weight, columns, wanted, weights, preserved, ridge)
    assert relative(solution.change(weight, wanted), expected) < 1e-6


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_one_map_of_the_text_makes_every_change_to_an_anchor(shape: tuple[int, int, int, int, int]) -> None:
    weight, columns, _, weights, preserved = problem(shape)
    anchors = columns.roll(1, 0) * 0.5
    solution = solve(columns, ridge=0.1, weights=weights, preserved=preserved)
    expected = textbook(weight, columns, weight.double() @ anchors.double(), weights, preserved, ridge=0.1)
    assert relative(weight.double() @ solution.text_map(anchors), expected) < 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 2**31))
def test_an_edited_concept_lands_on_the_wanted_output_and_preserved_ones_stay(
    k: int, m: int, seed: int
) -> None:
    weight, columns, wanted, _, preserved = problem((32, k, m, 5, seed))
    change = solve(columns, ridge=1e-9, preserved=preserved).change(weight, wanted)
    torch.testing.assert_close((weight + change) @ columns, wanted, atol=2e-4, rtol=0)
    torch.testing.assert_close(change @ preserved, torch.zeros(5, m), atol=2e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 16), st.integers(0, 2**31))
def test_in_null_space_mode_preserved_columns_do_not_move_whatever_the_ridge(
    k: int, m: int, seed: int
) -> None:
    weight, columns, wanted, _, preserved = problem((32, k, m, 5, seed))
    room = preserved_basis(preserved)
    change = solve(columns, ridge=0.5, basis=room.basis).change(weight, wanted)
    assert room.energy == pytest.approx(1.0)
    assert float((change @ preserved).abs().max()) < 1e-5
    exact = solve(columns, ridge=1e-9, basis=room.basis).change(weight, wanted)
    torch.testing.assert_close((weight + exact) @ columns, wanted, atol=2e-3, rtol=0)


def test_too_much_to_preserve_leaves_the_edit_its_share_and_says_so() -> None:
    preserved = torch.randn(32, 200, generator=torch.Generator().manual_seed(0))
    room = preserved_basis(preserved, share=0.5)
    assert room.basis.shape == (32, 16)
    assert 0.5 < room.energy < 0.9
    torch.testing.assert_close(room.basis.T @ room.basis, torch.eye(16, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10), st.integers(0, 20), st.integers(0, 2**31))
def test_the_rank_of_the_change_is_the_number_of_edited_columns(k: int, m: int, seed: int) -> None:
    weight, columns, wanted, _, preserved = problem((32, k, m, 24, seed))
    change = solve(columns, ridge=0.1, preserved=preserved).change(weight, wanted)
    assert int(torch.linalg.matrix_rank(change.double(), rtol=1e-5)) == k


def test_collinear_and_repeated_columns_have_an_answer() -> None:
    columns = torch.ones(8, 20)
    change = edit_columns(torch.zeros(3, 8), columns, torch.ones(3, 20), ridge=0.1)
    torch.testing.assert_close(change @ columns, torch.ones(3, 20), atol=1e-3, rtol=0)


def test_a_weight_of_two_is_the_column_twice() -> None:
    weight, columns, wanted, _, _ = problem((12, 3, 0, 4, 5))
    heavy = edit_columns(weight, columns, wanted, torch.tensor([2.0, 1.0, 1.0]), ridge=0.1)
    twice = edit_columns(weight, columns[:, [0, 0, 1, 2]], wanted[:, [0, 0, 1, 2]], ridge=0.1)
    torch.testing.assert_close(heavy, twice)


def test_both_forms_agree_where_columns_are_as_many_as_the_width() -> None:
    weight, columns, wanted, weights, preserved = problem((16, 10, 6, 4, 1))
    small = solve(columns, ridge=0.1, weights=weights, preserved=preserved)
    padded = torch.cat([preserved, torch.zeros(16, 1)], dim=1)  # one column more: the other form
    large = solve(columns, ridge=0.1, weights=weights, preserved=padded)
    torch.testing.assert_close(small.change(weight, wanted), large.change(weight, wanted))


def test_arguments_are_left_alone() -> None:
    weight, columns, wanted, weights, preserved = problem((12, 3, 4, 4, 5))
    before = [x.clone() for x in (weight, columns, wanted, weights, preserved)]
    room = preserved_basis(preserved)
    solve(columns, ridge=0.1, weights=weights, preserved=preserved, basis=room.basis).change(weight, wanted)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (weight, columns, wanted, weights, preserved), strict=True)
    )


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_is_refused(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge must be positive"):
        solve(torch.ones(3, 1), ridge=ridge)


def test_negative_weights_and_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="weights of columns must not be negative"):
        solve(torch.ones(3, 1), ridge=0.1, weights=torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        preserved_basis(torch.ones(3, 1), share=1.0)


def test_free_of_no_subspace_is_everything() -> None:
    columns = torch.randn(4, 2, dtype=torch.float64)
    assert free_of(columns, None) is columns
