from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compiler.optimiser import Optimiser, lead_back

RATE = 0.01


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _stepped(start: Tensor, gradient: Tensor, kind: str = "muon") -> Tensor:
    """What one step changes."""
    weight = nn.Parameter(start.clone())
    weight.grad = gradient.clone()
    Optimiser(kind, [weight], RATE).step(RATE)  # type: ignore[arg-type]
    return weight.detach() - start


def test_adam_is_the_one_of_the_library_with_the_rate_of_each_step() -> None:
    ours, theirs = nn.Parameter(_noise(5, 7)), nn.Parameter(_noise(5, 7))
    optimiser, reference = Optimiser("adam", [ours], 1.0), torch.optim.Adam([theirs], lr=1.0, fused=True)
    for step in range(5):
        gradient, rate = _noise(5, 7, seed=step), RATE / (1 + step)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimiser.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    assert torch.equal(ours, theirs)


def test_muon_gives_every_direction_of_a_matrix_one_pace() -> None:
    left, _ = torch.linalg.qr(_noise(24, 24, seed=1))
    right, _ = torch.linalg.qr(_noise(32, 32, seed=2))
    sizes = torch.logspace(0, -1.5, 24)  # Adam's step would keep most of these differences
    change = _stepped(_noise(24, 32), left @ torch.diag(sizes) @ right[:24])
    paces = torch.linalg.svdvals(change)
    assert float(paces.max() / paces.min()) < 2.5
    assert float(change.square().mean().sqrt()) == pytest.approx(0.2 * RATE, rel=0.25), "of Adam's size"


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(1e-3, 1e3))
def test_how_large_a_gradient_is_does_not_matter_to_muon(factor: float) -> None:
    start, gradient = _noise(16, 8), _noise(16, 8, seed=3)
    change, again = _stepped(start, gradient), _stepped(start, factor * gradient)
    assert float((change - again).norm() / change.norm()) < 1e-3


def test_a_convolution_is_learned_as_the_matrix_that_it_is() -> None:
    start, gradient = _noise(8, 4, 3, 3), _noise(8, 4, 3, 3, seed=4)
    matrix = _stepped(start.flatten(1), gradient.flatten(1))
    assert torch.equal(_stepped(start, gradient), matrix.view_as(start))


def test_vectors_beside_matrices_are_learned_by_adam() -> None:
    start, gradient = _noise(16), _noise(16, seed=5)
    assert torch.equal(_stepped(start, gradient), _stepped(start, gradient, "adam"))


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_no_gradient_is_left_after_a_step(kind: str) -> None:
    weights = [nn.Parameter(_noise(8, 4)), nn.Parameter(_noise(4, 2, 3, 3)), nn.Parameter(_noise(8))]
    optimiser = Optimiser(kind, weights, RATE)  # type: ignore[arg-type]
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimiser.step(RATE)
        assert all(weight.grad is None for weight in weights)
    before = [weight.detach().clone() for weight in weights]
    optimiser.step(RATE)
    assert all(torch.equal(weight, start) for weight, start in zip(weights, before, strict=True))


@given(share=st.floats(0.0, 5.0))
def test_decay_leads_back_to_where_training_began_and_never_past_it(share: float) -> None:
    start, change = 3.0 + _noise(8, 4), _noise(8, 4, seed=6)
    weights = {"weight": nn.Parameter(start + change)}
    lead_back(weights, {"weight": start}, share)
    left = weights["weight"].detach() - start
    assert torch.allclose(left, (1.0 - min(1.0, share)) * change, atol=1e-5)
