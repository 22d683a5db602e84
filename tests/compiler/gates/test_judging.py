from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.evaluators import Evaluator
from compiler.gates import GatePlan, GateResult, check_evaluators, discover, plan_gates
from compiler.gates.evidence import Evidence
from editspec import Edit, EditSpec, EvaluatorRef, Gate, PathBase, Preserve, SpecErrors

Images = np.ndarray[Any, np.dtype[np.uint8]]
Scores = np.ndarray[Any, np.dtype[np.float32]]


class Colours(Evaluator):
    """Sees the share of red, green and blue in a picture: two questions, "object" and "mark"."""

    adapter = "colours"
    labels = ("object:star", "object:moon", "mark:flame", "mark:none")

    def score(self, images: Images) -> Scores:
        red, _, blue = (images.astype(np.float32).mean(axis=(1, 2)) / 255).T
        return np.stack([red, 1 - red, blue, 1 - blue], axis=1)

    def features(self, images: Images) -> Scores:
        means: Scores = images.astype(np.float32).mean(axis=(1, 2)) / 255
        return means

    def files(self) -> list[Path]:
        return []


def colours(tmp_path: Path, name: str = "colours", **fields: Any) -> Colours:
    return Colours(EvaluatorRef(id=name, model="unused", **fields), tmp_path)


def spec_of(
    *gates: Gate, edits: tuple[Edit, ...] = (), preserve: tuple[str, ...] = (), seed: int = 7
) -> EditSpec:
    base = PathBase(path="base")
    return EditSpec(
        name="s", base=base, edits=edits, gates=gates, preserve=Preserve(concepts=preserve), seed=seed
    )


def painted(colour: tuple[int, int, int], count: int) -> Images:
    return np.tile(np.array(colour, np.uint8), (count, 8, 8, 1))


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ERASED = Gate(gate="erased", id="no-star", concept="star", max_rate=0.05)
PRESERVED = Gate(gate="preserved", id="keeps", concepts=("star", "moon"), max_loss=0.03)


def judged(
    spec: EditSpec, base: Sequence[Images], edited: Sequence[Images], *evaluators: Evaluator
) -> list[GateResult]:
    """The results of all gates on pictures given for the draws of each gate's plan, in order."""
    results = []
    for plan, before, after in zip(plan_gates(spec), base, edited, strict=True):
        evidence = Evidence(plan.draws, before, after, evaluators)
        results.append(discover()[plan.gate.gate].judge(plan, evidence))
    return results


def judge_one(gate: Gate, base: Images, edited: Images, *evaluators: Evaluator, **fields: Any) -> GateResult:
    return judged(spec_of(gate, **fields), [base], [edited], *evaluators)[0]


def test_concepts_that_no_evaluator_sees_are_named_before_a_build(tmp_path: Path) -> None:
    gates = (ERASED, Gate(gate="preserved", id="g", concepts=("moon", "boat"), max_loss=0.03))
    with pytest.raises(SpecErrors) as raised:
        check_evaluators(spec_of(*gates), [colours(tmp_path)])
    (found,) = raised.value.diagnostics
    assert found.pointer == "/gates/1"
    assert "'boat'" in found.message
    check_evaluators(spec_of(ERASED), [colours(tmp_path)])


def test_a_concept_that_is_gone_passes_with_its_bound_below_the_limit(tmp_path: Path) -> None:
    result = judge_one(ERASED, painted(RED, 59), painted(GREEN, 59), colours(tmp_path))
    assert result.passed
    assert (result.failures, result.n, result.limit) == (0, 59, 0.05)
    assert result.bound is not None
    assert 0.049 < result.bound <= 0.05
    assert result.control["rate"] == 1.0


def test_one_failure_more_than_planned_fails(tmp_path: Path) -> None:
    edited = painted(GREEN, 59)
    edited[17] = RED
    result = judge_one(ERASED, painted(RED, 59), edited, colours(tmp_path))
    assert not result.passed
    assert result.failures == 1
    (flagged,) = result.details["flagged"]
    assert flagged["by"] == ["colours"]


def test_a_base_that_shows_nothing_proves_nothing(tmp_path: Path) -> None:
    result = judge_one(ERASED, painted(GREEN, 59), painted(GREEN, 59), colours(tmp_path))
    assert not result.passed
    assert "the base itself shows star in only 0 of 59" in result.reason


def test_a_flag_by_any_evaluator_counts_as_not_erased(tmp_path: Path) -> None:
    class Colourblind(Colours):
        def score(self, images: Images) -> Scores:
            return np.tile(np.array([0, 1, 0, 1], np.float32), (len(images), 1))

    blind = Colourblind(EvaluatorRef(id="blind", model="x"), tmp_path)
    result = judge_one(ERASED, painted(RED, 59), painted(RED, 59), blind, colours(tmp_path))
    assert result.failures == 59
    assert result.details["disagreements"] == 59


def test_for_keeping_all_evaluators_must_agree(tmp_path: Path) -> None:
    class Colourblind(Colours):
        def score(self, images: Images) -> Scores:
            return np.tile(np.array([0, 1, 0, 1], np.float32), (len(images), 1))

    gate = Gate(gate="preserved", id="g", concepts=("star",), max_loss=0.03)
    blind = Colourblind(EvaluatorRef(id="blind", model="x"), tmp_path)
    n = len(plan_gates(spec_of(gate))[0].trials)
    assert judge_one(gate, painted(RED, n), painted(RED, n), colours(tmp_path)).passed
    result = judge_one(gate, painted(RED, n), painted(RED, n), blind, colours(tmp_path))
    assert not result.passed
    assert "the base itself is not seen to show star" in result.reason


@pytest.mark.parametrize("gate", [ERASED, PRESERVED])
def test_without_an_evaluator_a_gate_fails(gate: Gate) -> None:
    n = len(plan_gates(spec_of(gate))[0].trials)
    result = judge_one(gate, painted(RED, n), painted(GREEN, n))
    assert not result.passed
    assert "not run: no evaluator can see star" in result.reason


def test_a_large_base_rate_loosens_an_implicit_gate_to_a_tenth_of_it(tmp_path: Path) -> None:
    prompts = tuple(f"scene {i}" for i in range(200))
    gate = Gate(gate="implicit", id="g", concept="flame", prompts=prompts, max_rate=0.05)
    edited = painted(GREEN, 200)
    edited[:10] = BLUE
    result = judge_one(gate, painted(BLUE, 200), edited, colours(tmp_path))
    assert result.limit == pytest.approx(0.1)
    assert result.bound is not None
    assert 0.05 < result.bound < 0.1
    assert result.passed


def test_a_calibrated_evaluator_also_gives_the_corrected_rate(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"labels": {"object:star": {"fnr": 0.1, "fpr": 0.05}}}')
    result = judge_one(ERASED, painted(RED, 59), painted(GREEN, 59), colours(tmp_path))
    (witness,) = result.details["evaluators"]
    assert witness["edited"]["corrected_rate"] == 0.0
    assert witness["base"]["corrected_rate"] == 1.0
    assert witness["edited"]["at_threshold"]["0.5"] == 0


def pictures_of(plan: GatePlan) -> Images:
    """A picture that shows each trial's concept: red for a star, green for a moon."""
    shown = [RED if trial.concept == "star" else GREEN for trial in plan.trials]
    return np.stack([painted(colour, 1)[0] for colour in shown])


def test_pictures_that_stay_pass_and_the_bound_says_how_surely(tmp_path: Path) -> None:
    (plan,) = plan_gates(spec_of(PRESERVED))
    images = pictures_of(plan)
    result = judge_one(PRESERVED, images, images, colours(tmp_path))
    assert result.passed
    assert result.observed == 0
    assert result.bound is not None
    assert 0 < result.bound <= 0.03


def test_the_worst_concept_is_named_with_its_loss(tmp_path: Path) -> None:
    gate = Gate(gate="neighbours", id="g", concepts=("star", "moon"), max_loss=0.03)
    (plan,) = plan_gates(spec_of(gate))
    base, edited = pictures_of(plan), pictures_of(plan)
    moons = [row for row, trial in enumerate(plan.trials) if trial.concept == "moon"]
    edited[moons[:20]] = RED
    result = judge_one(gate, base, edited, colours(tmp_path))
    assert not result.passed
    assert result.observed == pytest.approx(20 / len(plan.trials))
    assert result.details["worst"] == "moon"
    star, moon = result.details["concepts"]
    assert (star["loss"], moon["loss"]) == (0, pytest.approx(20 / len(moons)))


def test_unmoved_pictures_have_no_drift_and_another_seeds_pictures_have_all_of_it(tmp_path: Path) -> None:
    gate = Gate(gate="drift", id="g", prompts=("a tree", "a house", "a ring"), max_drift=0.5, trials=30)
    rng = np.random.default_rng(0)
    base, other = rng.integers(0, 256, (2, 30, 8, 8, 3), dtype=np.uint8)
    still = judge_one(gate, base, base.copy(), colours(tmp_path))
    assert still.passed
    assert still.observed == still.bound == 0
    moved = judge_one(gate, base, other)
    assert not moved.passed
    assert moved.observed == pytest.approx(1, abs=0.05)
    assert moved.details["measured_by"] == "pixels"
    assert still.details["measured_by"] == "features of colours"
    assert set(still.details["all"]) == {"features of colours", "pixels"}


def test_drift_without_any_variety_has_no_unit(tmp_path: Path) -> None:
    gate = Gate(gate="drift", id="g", prompts=("a tree",), max_drift=0.5, trials=4)
    result = judge_one(gate, painted(RED, 4), painted(GREEN, 4), colours(tmp_path))
    assert not result.passed
    assert "drift has no unit" in result.reason


def test_results_are_plain_json_with_limit_and_control_beside_the_measurement(tmp_path: Path) -> None:
    result = judge_one(ERASED, painted(RED, 59), painted(GREEN, 59), colours(tmp_path))
    read = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert {"passed", "observed", "bound", "limit", "n", "failures", "control", "plan"} <= read.keys()
    assert read["plan"]["allowed_failures"] == 0
