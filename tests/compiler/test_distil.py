from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compiler.bank import Bank, build_bank, load_bank
from compiler.bank_request import BankRequest
from compiler.checkpoint import Checkpoint
from compiler.conditioning import Conditioning, encode, encode_unconditional
from compiler.distil import (
    Distilled,
    DistilSettings,
    Diverged,
    distil,
    learning_rate,
    summary,
)
from compiler.held_out import split
from compiler.sampling import classifier_free_guidance, load_scheduler, predict
from compiler.selections import select
from compiler.terms import HUBER_KNEE, Guided, Term, check, pointwise_loss
from compiler.text import TextEncoder
from compiler.unet import add_deltas, build_unet

PROMPTS = ("a star", "a moon")


class World:
    """A tiny base with a bank of "a star" and "a moon"; prompt row 0 is the empty prompt."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        text = TextEncoder.from_checkpoint(checkpoint)
        self.unet = build_unet(checkpoint)
        unconditional = encode_unconditional(text, checkpoint)

        def encoded(prompts: Any) -> Conditioning:
            return encode(text, prompts, checkpoint)

        self.prompts = unconditional.join(encoded(PROMPTS))
        self.names = select(checkpoint.weights("unet").entries, "cross-attention")
        request = BankRequest(PROMPTS, (3, 3), seed=5, steps=4, strata=4)
        build_bank(self.unet, load_scheduler(checkpoint), encoded, unconditional, request, scratch)
        self.bank: Bank = load_bank(scratch)

    def term(self, name: str, prompt: int, target: Callable[[Tensor], Tensor], weight: float = 1.0) -> Term:
        """Rows of the first prompt, at which the student reads `prompt`."""
        rows = (self.bank.column("prompt") == 0).nonzero()[:, 0]
        examples = torch.stack([rows, torch.full_like(rows, prompt)], dim=1)
        return Term(name, self.bank, examples, target, weight, batch=4)

    def away(self, rows: Tensor) -> Tensor:
        uncond, cond = self.bank.take("uncond", rows), self.bank.take("cond", rows)
        return uncond - 3.0 * (cond - uncond)

    def uncond(self, rows: Tensor) -> Tensor:
        return self.bank.take("uncond", rows)

    def run(self, *terms: Term, **changed: Any) -> Distilled:
        settings = {"steps": 30, "learning_rate": 2e-3, "seed": 1, **changed}
        return distil(self.unet, self.names, self.prompts, terms, DistilSettings(**settings))

    def error(self, prompt: int, target: Callable[[Tensor], Tensor], deltas: dict[str, Tensor]) -> float:
        """Mean square error of the edited U-Net over all rows of "a star"."""
        rows = (self.bank.column("prompt") == 0).nonzero()[:, 0]
        add_deltas(self.unet, deltas)
        try:
            with torch.no_grad():
                texts = self.prompts.rows([prompt] * len(rows))
                x, t = self.bank.take("model_input", rows), self.bank.take("timestep", rows)
                found = predict(self.unet, x, t, texts)
        finally:
            add_deltas(self.unet, {name: -delta for name, delta in deltas.items()})
        return float((found - target(rows)).square().mean())

    def guided_error(
        self, scale: float, wanted: Callable[[str], Callable[[Tensor], Tensor]], deltas: dict[str, Tensor]
    ) -> float:
        """Mean square error of guided predictions over all rows of "a star"."""
        rows = (self.bank.column("prompt") == 0).nonzero()[:, 0]
        x, t = self.bank.take("model_input", rows), self.bank.take("timestep", rows)
        add_deltas(self.unet, deltas)
        try:
            with torch.no_grad():
                halves = [predict(self.unet, x, t, self.prompts.rows([k] * len(rows))) for k in (0, 1)]
        finally:
            add_deltas(self.unet, {name: -delta for name, delta in deltas.items()})
        errors = halves[0] - wanted("uncond")(rows), halves[1] - wanted("cond")(rows)
        return float(classifier_free_guidance(*errors, scale).square().mean())


@pytest.fixture(scope="module")
def world(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tiny_checkpoint, tmp_path_factory.mktemp("bank"))


@pytest.mark.parametrize(("optimiser", "rate"), [("adam", 2e-3), ("muon", 1e-2)])
def test_the_student_learns_the_target_and_the_loss_says_so(
    world: World, optimiser: str, rate: float
) -> None:
    done = world.run(world.term("erase", 1, world.away), optimiser=optimiser, learning_rate=rate)
    assert world.error(1, world.away, done.deltas) < 0.5 * world.error(1, world.away, {})
    losses = done.curve["erase"]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_halves_learned_together_err_less_where_guidance_multiplies_their_errors(world: World) -> None:
    def moved(column: str) -> Callable[[Tensor], Tensor]:
        return lambda rows: world.bank.take(column, rows) + 0.3 * world.bank.take("model_input", rows).sign()

    alone = world.term("text", 1, moved("cond")), world.term("empty", 0, moved("uncond"))
    together = replace(alone[0], name="guided", guided=Guided((7.5,), moved("uncond")))
    apart, paired = world.run(*alone), world.run(together)
    assert paired.evals == apart.evals == 30 * 4 * 6
    assert world.guided_error(7.5, moved, paired.deltas) < 0.8 * world.guided_error(7.5, moved, apart.deltas)


def test_guided_and_plain_terms_give_the_gradient_of_the_whole_in_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = world.term("plain", 1, world.away)
    guided = replace(plain, name="guided", guided=Guided((3.0, 7.5), world.uncond))
    whole = world.run(guided, plain, steps=1)
    monkeypatch.setattr("compiler.distil.examples_at_once", lambda config: 3)
    parts = world.run(guided, plain, steps=1)
    assert parts.evals == whole.evals == 4 * 6 + 4 * 3
    for name, losses in whole.curve.items():
        assert parts.curve[name] == pytest.approx(losses, rel=1e-4)


def test_rows_count_as_much_as_their_weights_say(world: World) -> None:
    term = world.term("erase", 1, world.away)
    late = world.bank.column("step") >= 2
    weighed = replace(term, row_weights=3.0 * late.float())
    only = replace(term, examples=term.examples[late[term.examples[:, 0]]])
    losses = [check(world.unet, world.prompts, [one], "l2", 8) for one in (weighed, only)]
    assert losses[0] == pytest.approx(3.0 * losses[1] * len(only.examples) / len(term.examples), rel=1e-4)
    unheard = world.run(replace(term, row_weights=torch.zeros(len(world.bank))), steps=2)
    assert not any(bool(delta.any()) for delta in unheard.deltas.values())


def test_the_keep_term_holds_the_empty_prompt(world: World) -> None:
    erase, keep = world.term("erase", 1, world.away), world.term("empty", 0, world.uncond, weight=1.0)
    free, kept = world.run(erase), world.run(erase, keep)
    drift_free = world.error(0, world.uncond, free.deltas)
    drift_kept = world.error(0, world.uncond, kept.deltas)
    assert drift_kept < 0.5 * drift_free
    assert world.error(1, world.away, kept.deltas) < 0.7 * world.error(1, world.away, {})


def test_only_the_named_weights_move_and_the_base_comes_back(world: World) -> None:
    before = {name: weight.detach().clone() for name, weight in world.unet.named_parameters()}
    done = world.run(world.term("erase", 1, world.away), steps=3)
    assert set(done.deltas) == set(world.names)
    assert all(delta.dtype == torch.float32 and bool(delta.any()) for delta in done.deltas.values())
    for name, weight in world.unet.named_parameters():
        assert torch.equal(weight, before[name]), name
        assert not weight.requires_grad
        assert weight.grad is None


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_the_same_run_gives_the_same_bits(world: World, optimiser: str) -> None:
    terms = world.term("erase", 1, world.away), world.term("empty", 0, world.uncond)
    first, again = (world.run(*terms, steps=8, optimiser=optimiser) for _ in range(2))
    assert first.curve == again.curve
    assert all(torch.equal(first.deltas[name], again.deltas[name]) for name in world.names)
    other = world.run(*terms, steps=8, optimiser=optimiser, seed=2)
    assert any(not torch.equal(first.deltas[name], other.deltas[name]) for name in world.names)


def test_every_weight_is_learned_by_muon_in_the_place_where_the_network_reads_it(world: World) -> None:
    entries = dict(world.unet.named_parameters())
    names = [name for name, weight in entries.items() if name.startswith("mid_block")]
    assert {entries[name].ndim for name in names} == {1, 2, 4}
    settings = DistilSettings(steps=2, learning_rate=2e-3, seed=1, optimiser="muon")
    done = distil(world.unet, names, world.prompts, [world.term("erase", 1, world.away)], settings)
    moved = [name for name in names if bool(done.deltas[name].any())]
    assert {entries[name].ndim for name in moved} == {1, 2, 4}


def test_examples_in_parts_give_the_gradient_of_the_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = world.term("erase", 1, world.away), world.term("empty", 0, world.uncond, weight=0.5)
    whole = world.run(*terms, steps=1)
    monkeypatch.setattr("compiler.distil.examples_at_once", lambda config: 3)
    parts = world.run(*terms, steps=1)
    assert parts.evals == whole.evals == 3 * 8
    for name, losses in whole.curve.items():
        assert parts.curve[name] == pytest.approx(losses, rel=1e-4)


def test_held_out_trajectories_are_never_trained_on(world: World) -> None:
    terms = [world.term("erase", 1, world.away), world.term("empty", 0, world.uncond)]
    train, check = split(terms, 0.34)
    for whole, rest, held in zip(terms, train, check, strict=True):
        numbers = [
            set(whole.bank.column("trajectory")[term.examples[:, 0]].tolist()) for term in (rest, held)
        ]
        assert not numbers[0] & numbers[1]
        assert len(numbers[0]) == 2
        assert len(numbers[1]) == 1
    assert split(terms, 0.0) == (terms, [])


def test_training_stops_where_held_out_examples_gain_no_more(world: World) -> None:
    erase = world.term("erase", 1, world.away)
    noise = torch.randn(len(world.bank), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    learnable = world.run(erase, steps=20, held_out=0.34)
    assert len(learnable.held_out) > 10
    hopeless = world.run(world.term("erase", 1, lambda rows: 9 * noise[rows]), steps=40, held_out=0.34)
    assert len(hopeless.curve["erase"]) < 40
    assert hopeless.evals == 4 * 3 * len(hopeless.curve["erase"]) + 4 * len(hopeless.held_out)


def test_the_moving_average_lies_between_start_and_end(world: World) -> None:
    erase = world.term("erase", 1, world.away)
    last, averaged = world.run(erase), world.run(erase, ema=0.99)
    assert averaged.curve == last.curve
    norms = [sum(float(delta.square().sum()) for delta in done.deltas.values()) for done in (averaged, last)]
    assert 0 < norms[0] < norms[1]
    assert world.error(1, world.away, averaged.deltas) < world.error(1, world.away, {})


def test_a_backward_pass_counts_two_evals(world: World) -> None:
    told: list[int] = []
    settings = DistilSettings(5, 1e-4, 1)
    terms = [world.term("erase", 1, world.away)]
    done = distil(world.unet, world.names, world.prompts, terms, settings, told.append)
    assert done.evals == sum(told) == 5 * 4 * 3


def test_a_loss_that_is_not_finite_stops_training_and_gives_the_base_back(world: World) -> None:
    before = {name: weight.detach().clone() for name, weight in world.unet.named_parameters()}
    with pytest.raises(Diverged, match="'erase' is not finite at step 0"):
        world.run(world.term("erase", 1, lambda rows: world.away(rows) * math.inf))
    assert all(torch.equal(weight, before[name]) for name, weight in world.unet.named_parameters())


@given(st.floats(-3, 3), st.sampled_from(["l2", "l1", "huber"]))
def test_losses_are_even_and_zero_at_zero(difference: float, loss: Any) -> None:
    both = pointwise_loss(torch.tensor([difference, -difference, 0.0], dtype=torch.float64), loss)
    assert both[0] == both[1] >= both[2] == 0


def test_hubers_loss_is_smooth_at_its_knee() -> None:
    at = torch.tensor([HUBER_KNEE - 1e-6, HUBER_KNEE + 1e-6], dtype=torch.float64, requires_grad=True)
    value = pointwise_loss(at, "huber")
    (slope,) = torch.autograd.grad(value.sum(), at)
    assert value[0].item() == pytest.approx(value[1].item(), rel=1e-4)
    assert slope[0].item() == pytest.approx(slope[1].item(), rel=1e-4)


@pytest.mark.parametrize(("schedule", "half"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_a_schedule_starts_at_the_full_rate_and_falls(schedule: Any, half: float) -> None:
    settings = DistilSettings(10, 2.0, 1, schedule=schedule)
    assert learning_rate(settings, 0) == 2.0
    assert learning_rate(settings, 5) == pytest.approx(2.0 * half)
    assert learning_rate(settings, 9) > 0


def test_a_curve_is_summed_up_in_few_points() -> None:
    assert summary({"x": [float(n) for n in range(40)]}, points=4) == {"x": [4.5, 14.5, 24.5, 34.5]}
    assert summary({"x": [2.0, 4.0]}) == {"x": [2.0, 4.0]}
