"""Training in bfloat16: fewer digits inside the network, the same lesson."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from compiler.bank import Bank
from compiler.checkpoint import Checkpoint
from compiler.conditioning import Conditioning, encode
from compiler.distil import Distilled, DistilSettings, distil
from compiler.precision import Precision, predicted, rounds
from compiler.sampling import predict
from compiler.seeds import gaussian
from compiler.selections import select
from compiler.terms import Term
from compiler.text import TextEncoder
from compiler.unet import build_unet


@pytest.fixture(scope="module")
def unet(telling_checkpoint: Path) -> torch.nn.Module:
    return build_unet(Checkpoint.open(telling_checkpoint))


@pytest.fixture(scope="module")
def prompts(telling_checkpoint: Path) -> Conditioning:
    checkpoint = Checkpoint.open(telling_checkpoint)
    return encode(TextEncoder.from_checkpoint(checkpoint), ["a star", "a moon"], checkpoint)


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("auto", "mps", False),
        ("float32", "cuda", False),
        ("bfloat16", "cpu", True),
    ],
)
def test_bfloat16_is_left_to_cuda_unless_asked_for(precision: Precision, device: str, expected: bool) -> None:
    assert rounds(precision, torch.device(device)) is expected


def test_a_rounded_prediction_is_fp32_near_the_exact_one(
    unet: torch.nn.Module, prompts: Conditioning
) -> None:
    x, t = gaussian((2, 4, 8, 8), 1, "x"), torch.tensor([100.0, 700.0])
    with torch.no_grad():
        exact = predict(unet, x, t, prompts)
        rounded = predicted(unet, x, t, prompts, bfloat16=True)
        assert torch.equal(predicted(unet, x, t, prompts, bfloat16=False), exact)
    assert rounded.dtype is torch.float32
    difference = float((rounded - exact).norm() / exact.norm())
    assert 1e-5 < difference < 0.03, "eight binary digits, through a dozen layers"


def _learn(
    unet: torch.nn.Module, prompts: Conditioning, names: tuple[str, ...], *, bfloat16: bool
) -> Distilled:
    """The student learns to predict for a star what the base predicts for a moon."""
    count = 8
    x = gaussian((count, 4, 8, 8), 3, "x")
    t = torch.linspace(50, 950, count)
    with torch.no_grad():
        wanted = predict(unet, x, t, prompts.rows([1] * count))
    column = {"model_input": x, "timestep": t, "trajectory": torch.arange(count)}
    bank = Bank(("a star",), ({**column, "cond": wanted},))

    def target(rows: Tensor) -> Tensor:
        return bank.take("cond", rows)

    examples = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)], dim=1)
    term = Term("learn", bank, examples, target, 1.0, batch=count)
    return distil(unet, names, prompts, [term], DistilSettings(40, 2e-3, 1, bfloat16=bfloat16))


def test_what_is_learned_in_bfloat16_is_what_is_learned_in_float32(
    telling_checkpoint: Path, unet: torch.nn.Module, prompts: Conditioning
) -> None:
    names = select(Checkpoint.open(telling_checkpoint).weights("unet").entries, "cross-attention")
    exact, rounded = (_learn(unet, prompts, names, bfloat16=on) for on in (False, True))
    again = _learn(unet, prompts, names, bfloat16=True)
    a, b, c = (torch.cat([one.deltas[n].flatten() for n in names]) for one in (exact, rounded, again))
    assert torch.equal(b, c), "the same bits twice"
    assert b.dtype is torch.float32
    assert not torch.equal(a, b), "the network was really rounded"
    assert float(torch.cosine_similarity(a, b, dim=0)) > 0.9
    first, last = rounded.curve["learn"][0], rounded.curve["learn"][-1]
    assert last < 0.5 * first
    assert last == pytest.approx(exact.curve["learn"][-1], rel=0.3)
