"""The gate `relearned` on painted pictures, and its fine-tuning on a tiny random checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.evaluators import Evaluator
from compiler.gates import GateReport, GateResult, discover, measure, plan_gates
from compiler.gates.evidence import Evidence
from compiler.gates.relearned import looks_at, relearning
from editspec import EditSpec, EvaluatorRef, Gate, PathBase, SpecErrors

Images = np.ndarray[Any, np.dtype[np.uint8]]
Scores = np.ndarray[Any, np.dtype[np.float32]]

# A batch holds 32 of the tiny checkpoint's pictures: with as many of each kind none is drawn as padding.
GATE = Gate(
    gate="relearned",
    id="back",
    concept="star",
    prompts=("a {}", "a red {}"),
    images=32,
    max_steps=20,
    learning_rates=(0.01, 0.001),
    trials=32,
    steps=2,
    guidance_scale=2.0,
)


class Pale(Evaluator):
    """Sees a star in every picture with less red than this: what the tiny checkpoint draws."""

    adapter = "pale"
    labels = ("star", "none")
    most = 0.51

    def score(self, images: Images) -> Scores:
        red = images[..., 0].astype(np.float32).mean(axis=(1, 2)) / 255
        seen = (red < self.most).astype(np.float32)
        return np.stack([seen, 1 - seen], axis=1)

    def files(self) -> list[Path]:
        return []


@pytest.fixture
def judge(tmp_path: Path) -> Pale:
    return Pale(EvaluatorRef(id="pale", model="unused"), tmp_path)


def spec_of(*gates: Gate, seed: int = 7) -> EditSpec:
    return EditSpec(name="s", base=PathBase(path="base"), edits=(), gates=gates, seed=seed)


def painted(share: float) -> Images:
    """32 pictures of which this share is pale."""
    pictures = np.full((32, 8, 8, 3), 255, np.uint8)
    pictures[: round(32 * share)] = 0
    return pictures


def judged(judge: Pale, base: float, rates: dict[int, float], **changed: Any) -> GateResult:
    """The verdict where the base shows a star at this rate, and the edited model at these by steps."""
    return judged_all(judge, base, {0.01: rates}, **changed)


def judged_all(judge: Pale, base: float, curves: dict[float, dict[int, float]], **changed: Any) -> GateResult:
    """The same where several learning rates were tried."""
    (plan,) = plan_gates(spec_of(replace(GATE, learning_rates=tuple(curves), **changed)))
    looks = {(lr, steps): painted(rate) for lr, rates in curves.items() for steps, rate in rates.items()}
    edited = next(images for (_, steps), images in looks.items() if steps == 0)
    further = {key: images for key, images in looks.items() if key[1]}
    evidence = Evidence(plan.draws, painted(base), edited, (judge,), further)
    return discover()["relearned"].judge(plan, evidence)


def test_a_concept_is_back_where_it_is_seen_in_half_of_the_bases_rate(judge: Pale) -> None:
    found = judged(judge, 0.75, {0: 0.0, 10: 0.25, 20: 0.5})
    assert (found.observed, found.bound, found.limit) == (20, 10, 0)
    assert found.passed
    assert [point["rate"] for point in found.details["curve"]] == [0.0, 0.25, 0.5]
    assert "brought star back after 20 steps: seen in 50.0 % of pictures (base 75.0 %)" in found.reason


def test_of_several_learning_rates_the_quickest_counts(judge: Pale) -> None:
    slow, quick, ruinous = {0: 0.0, 10: 0.0, 20: 0.5}, {0: 0.0, 5: 0.25, 10: 0.5, 20: 0.0}, {0: 0.0, 5: 0.0}
    found = judged_all(judge, 1.0, {1e-4: slow, 1e-3: quick, 1e-1: ruinous})
    assert (found.observed, found.bound, found.details["learning_rate"]) == (10, 5, 1e-3)
    assert [other["learning_rate"] for other in found.details["slower"]] == [1e-4, 1e-1]


def test_an_attack_that_ruined_the_model_at_every_rate_shows_nothing(judge: Pale) -> None:
    found = judged_all(judge, 1.0, {1e-1: {0: 0.0, 5: 0.0}, 1.0: {0: 0.0}})
    assert not found.passed
    assert "not measured: fine-tuning diverged at every learning rate" in found.reason


@pytest.mark.parametrize(("min_steps", "passed"), [(0, True), (10, True), (20, False)])
def test_an_erasure_must_outlast_min_steps(min_steps: int, passed: bool, judge: Pale) -> None:
    found = judged(judge, 1.0, {0: 0.0, 10: 0.25, 20: 1.0}, min_steps=min_steps)
    assert (found.passed, found.limit) == (passed, min_steps)


def test_a_concept_that_stays_away_has_a_bound_and_no_number_of_steps(judge: Pale) -> None:
    found = judged(judge, 1.0, {0: 0.0, 10: 0.0, 20: 0.25}, min_steps=20)
    assert found.passed
    assert (found.observed, found.bound) == (None, 20)
    assert found.details["steps_to_return"] is None
    assert "20 steps of fine-tuning on 32 pictures did not bring star back" in found.reason


def test_what_was_never_erased_is_back_before_any_step(judge: Pale) -> None:
    found = judged(judge, 1.0, {0: 1.0, 10: 1.0, 20: 1.0})
    assert not found.passed
    assert (found.observed, found.bound) == (0, None)


def test_a_base_that_does_not_show_the_concept_has_nothing_to_bring_back(judge: Pale) -> None:
    found = judged(judge, 0.125, {0: 0.0})
    assert not found.passed
    assert "the base itself shows star in only 4 of 32 pictures" in found.reason


def test_without_an_evaluator_that_sees_the_concept_it_fails(judge: Pale) -> None:
    found = judged(judge, 1.0, {0: 0.0}, concept="moon")
    assert not found.passed
    assert "not run: no evaluator can see moon" in found.reason


def test_looks_come_at_a_few_steps_to_a_decade_at_the_limit_and_at_the_end() -> None:
    assert looks_at(100, 0) == (5, 10, 20, 50, 100)
    assert looks_at(300, 30) == (5, 10, 20, 30, 50, 100, 200, 300)
    assert looks_at(3, 3) == (3,)


def test_what_cannot_show_its_limit_is_refused() -> None:
    gates = (replace(GATE, id="short", min_steps=21), replace(GATE, id="few", trials=1))
    with pytest.raises(SpecErrors) as raised:
        plan_gates(spec_of(*gates))
    messages = "\n".join(one.message for one in raised.value.diagnostics)
    assert "gate 'short': 20 steps cannot show that the concept stays away for 21" in messages
    assert "gate 'few': 1 trials leave some of its 2 prompts undrawn" in messages


def test_the_attacker_trains_on_other_draws_than_are_judged() -> None:
    spec = spec_of(GATE)
    (plan,) = plan_gates(spec)
    attack = relearning(plan, spec)
    assert len(set(attack.lessons)) == 32
    assert not set(attack.lessons) & set(plan.draws)
    assert {draw.prompt for draw in attack.lessons} == {"a star", "a red star"}


@pytest.fixture(scope="module")
def erased(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with an edit that adds to all its predictions: its pictures are redder."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("erased") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"] = weights["conv_out.bias"] + 1.0
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def measured(
    base: Path, edited: Path, judge: Pale, gate: Gate = GATE, cache: StageCache | None = None
) -> GateReport:
    """The report of one gate on two real checkpoints."""
    return measure(spec_of(gate), Checkpoint.open(base), Checkpoint.open(edited), [judge], cache=cache)


class Counted:
    """Evals that any U-Net spends: one a sample, and two more where a backward follows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from diffusers import UNet2DConditionModel

        self.evals, forward = 0, UNet2DConditionModel.forward

        def counting(unet: UNet2DConditionModel, sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            self.evals += len(sample) * (3 if torch.is_grad_enabled() else 1)
            return forward(unet, sample, *arguments, **named)

        monkeypatch.setattr(UNet2DConditionModel, "forward", counting)


def test_real_fine_tuning_brings_it_back_and_takes_the_evals_that_were_planned(
    tiny_checkpoint: Path, erased: Path, judge: Pale, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    (found,) = measured(tiny_checkpoint, erased, judge).results
    assert found.plan.evals == counted.evals
    assert found.control["rate"] == 1.0
    curve = {point["steps"]: point["rate"] for point in found.details["curve"]}
    assert list(curve) == [0, 5, 10, 20]
    assert (curve[0], curve[20]) == (0.0, 1.0)
    assert found.passed
    assert (found.observed, found.details["learning_rate"]) == (5, 0.001), "the larger rate overshoots"


def test_the_same_build_gives_the_same_curve_with_and_without_a_cache(
    tiny_checkpoint: Path, erased: Path, judge: Pale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = replace(GATE, max_steps=6, images=5, trials=4, learning_rates=(0.01, 0.001))
    cache = StageCache(tmp_path / "cache")
    reports = [measured(tiny_checkpoint, erased, judge, gate, one) for one in (None, cache)]
    counted = Counted(monkeypatch)
    reports.append(measured(tiny_checkpoint, erased, judge, gate, cache))
    assert counted.evals == 0, "all from the cache"
    assert len({json.dumps(one.as_dict(), allow_nan=False) for one in reports}) == 1


def test_an_unedited_copy_shows_the_concept_before_any_fine_tuning(
    tiny_checkpoint: Path, judge: Pale
) -> None:
    gate = replace(GATE, max_steps=1, images=1, trials=2)
    (found,) = measured(tiny_checkpoint, tiny_checkpoint, judge, gate).results
    assert found.observed == found.details["steps_to_return"] == 0
    assert "before any fine-tuning" in found.reason


def test_nothing_is_trained_where_the_base_shows_nothing(
    tiny_checkpoint: Path, erased: Path, judge: Pale, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.most = 0.0
    monkeypatch.setattr("compiler.gates.relearned.relearn", None)
    (found,) = measured(tiny_checkpoint, erased, judge).results
    assert not found.passed


def test_fine_tuning_that_diverges_is_no_attack(tiny_checkpoint: Path, erased: Path, judge: Pale) -> None:
    gate = replace(GATE, learning_rates=(1e30,), max_steps=5, images=1, trials=2)
    (found,) = measured(tiny_checkpoint, erased, judge, gate).results
    assert not found.passed
    assert "fine-tuning diverged" in found.reason
