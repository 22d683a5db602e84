from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from compiler.evaluators import Evaluator
from compiler.gates import check_evaluators, discover, plan_gates
from compiler.gates.evidence import Evidence
from compiler.gates.gate import spread
from editspec import EditSpec, Erase, EvaluatorRef, Gate, PathBase, Preserve, SpecErrors


class Colours(Evaluator):
    """Sees the share of red, green and blue in a picture: two questions, "object" and "mark"."""

    adapter = "colours"
    labels = ("object:star", "object:moon", "mark:flame", "mark:none")

    def score(self, images):
        red, _, blue = (images.astype(np.float32).mean(axis=(1, 2)) / 255).T
        return np.stack([red, 1 - red, blue, 1 - blue], axis=1)

    def features(self, images):
        return images.astype(np.float32).mean(axis=(1, 2)) / 255

    def files(self):
        return []


def colours(tmp_path, name="colours", **fields):
    return Colours(EvaluatorRef(id=name, model="unused", **fields), tmp_path)


def spec_of(*gates, edits=(), preserve=(), seed=7):
    base = PathBase(path="base")
    return EditSpec(
        name="s", base=base, edits=edits, gates=gates, preserve=Preserve(concepts=preserve), seed=seed
    )


def painted(colour, count):
    return np.tile(np.array(colour, np.uint8), (count, 8, 8, 1))


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ERASED = Gate(gate="erased", id="no-star", concept="star", max_rate=0.05)
PRESERVED = Gate(gate="preserved", id="keeps", concepts=("star", "moon"), max_loss=0.03)


def judged(spec, base, edited, *evaluators):
    """The results of all gates on pictures given for the draws of each gate's plan, in order."""
    results = []
    for plan, before, after in zip(plan_gates(spec), base, edited, strict=True):
        evidence = Evidence(plan.draws, before, after, evaluators)
        results.append(discover()[plan.gate.gate].judge(plan, evidence))
    return results


def judge_one(gate, base, edited, *evaluators, **fields):
    return judged(spec_of(gate, **fields), [base], [edited], *evaluators)[0]


# planning


def test_the_folder_walk_finds_every_gate_of_the_schema():
    assert sorted(discover()) == ["drift", "erased", "implicit", "neighbours", "preserved"]


@pytest.mark.parametrize(
    ("trials", "n", "allowed"), [(None, 59, 0), (93, 93, 1), (100, 100, 1), (208, 208, 5)]
)
def test_an_erased_gate_plans_its_trials_and_the_failures_it_allows(trials, n, allowed):
    gate = Gate(gate="erased", id="g", concept="star", max_rate=0.05, trials=trials)
    (plan,) = plan_gates(spec_of(gate))
    assert (len(plan.trials), plan.allowed, plan.limit) == (n, allowed, 0.05)


def test_aliases_are_drawn_as_often_as_the_concept():
    edit = Erase(id="e", concept="flame", aliases=("burning", "fire"))
    gate = Gate(gate="erased", id="g", concept="flame", max_rate=0.05, kind="content")
    (plan,) = plan_gates(spec_of(gate, edits=(edit,)))
    prompts = [draw.prompt for draw in plan.draws]
    assert {"a photo with flame", "a photo with burning", "fire"} <= set(prompts)
    counts = [prompts.count(prompt) for prompt in set(prompts)]
    assert max(counts) - min(counts) <= 1


def test_every_draw_has_a_seed_of_its_own_that_the_spec_decides():
    trials = spread([("a", None), ("b", None)], 100, 7)
    assert len({trial.draw.seed for trial in trials}) == 100
    assert spread([("b", None)], 10, 7) == tuple(t for t in trials if t.draw.prompt == "b")[:10]
    assert not {t.draw for t in spread([("a", None)], 100, 8)} & {t.draw for t in trials}


def test_gates_that_draw_the_same_count_it_once():
    neighbours = Gate(gate="neighbours", id="near", concepts=("star", "moon"), max_loss=0.03)
    first, second = plan_gates(spec_of(PRESERVED, neighbours))
    assert first.draws == second.draws
    assert first.evals == 2 * len(first.draws) * 25 * 2
    assert second.evals == 0


def test_paired_draws_are_as_many_for_each_concept():
    gate = Gate(gate="preserved", id="g", concepts=("star", "moon", "ring"), max_loss=0.03)
    (plan,) = plan_gates(spec_of(gate))
    concepts = [trial.concept for trial in plan.trials]
    assert len({concepts.count(concept) for concept in set(concepts)}) == 1
    assert all(trial.concept in trial.draw.prompt for trial in plan.trials)


def test_neighbours_are_those_given_and_those_preserved_but_never_what_is_edited():
    gate = Gate(gate="neighbours", id="g", concepts=("sixstar", "star"), max_loss=0.03)
    edits = (Erase(id="e", concept="star"),)
    (plan,) = plan_gates(spec_of(gate, edits=edits, preserve=("moon", "sixstar")))
    assert plan.as_dict()["concepts"] == ["sixstar", "moon"]


def test_implicit_prompts_are_each_drawn_at_least_once():
    prompts = tuple(f"a scene number {i}" for i in range(80))
    gate = Gate(gate="implicit", id="g", concept="flame", prompts=prompts, max_rate=0.05)
    (plan,) = plan_gates(spec_of(gate))
    assert sorted(draw.prompt for draw in plan.draws) == sorted(prompts)


def test_drift_draws_each_prompt_equally_often_and_at_least_twice():
    gate = Gate(gate="drift", id="g", prompts=("a tree", "a house", "a ring"), max_drift=0.2, trials=7)
    (plan,) = plan_gates(spec_of(gate))
    prompts = [draw.prompt for draw in plan.draws]
    assert [prompts.count(prompt) for prompt in gate.prompts] == [3, 3, 3]
    (plain,) = plan_gates(spec_of(Gate(gate="drift", id="g", max_drift=0.2)))
    assert len(plain.trials) == 60


def test_all_gates_that_cannot_prove_anything_are_refused_at_once():
    gates = (
        Gate(gate="erased", id="few", concept="star", max_rate=0.05, trials=58),
        Gate(gate="preserved", id="vague", max_loss=0.03),
        Gate(gate="preserved", id="scant", concepts=("moon",), max_loss=0.03, trials=50),
        Gate(gate="drift", id="once", prompts=("a tree", "a house"), max_drift=0.2, trials=3),
        Gate(gate="preserved", id="which", concepts=("a", "b"), prompts=("a scene",), max_loss=0.03),
    )
    with pytest.raises(SpecErrors) as raised:
        plan_gates(spec_of(*gates))
    text = "\n".join(f"{d.pointer} {d.message} {d.remedy}" for d in raised.value.diagnostics)
    for expected in (
        "/gates/0 gate 'few': even without a failure 58 trials cannot prove 5.0 % at 95.0 % give at least 59",
        "/gates/1 gate 'vague': it has no concepts to watch",
        "/gates/2 gate 'scant': 50 paired draws cannot prove 3.0 %",
        "/gates/3 gate 'once': 3 trials give some of its 2 prompts fewer than 2 seeds",
        "/gates/4 gate 'which': the prompt 'a scene' does not say which",
    ):
        assert expected in text


def test_concepts_that_no_evaluator_sees_are_named_before_a_build(tmp_path):
    gates = (ERASED, Gate(gate="preserved", id="g", concepts=("moon", "boat"), max_loss=0.03))
    with pytest.raises(SpecErrors) as raised:
        check_evaluators(spec_of(*gates), [colours(tmp_path)])
    (found,) = raised.value.diagnostics
    assert found.pointer == "/gates/1"
    assert "'boat'" in found.message
    check_evaluators(spec_of(ERASED), [colours(tmp_path)])


def test_planning_gates_loads_no_heavy_library():
    program = (
        "import sys; from compiler.gates import plan_gates; from editspec import *\n"
        "gate = Gate(gate='erased', id='g', concept='star', max_rate=0.05)\n"
        "plan_gates(EditSpec(name='s', base=PathBase(path='b'), edits=(), gates=(gate,)))\n"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy', 'scipy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# judging


def test_a_concept_that_is_gone_passes_with_its_bound_below_the_limit(tmp_path):
    result = judge_one(ERASED, painted(RED, 59), painted(GREEN, 59), colours(tmp_path))
    assert result.passed
    assert (result.failures, result.n, result.limit) == (0, 59, 0.05)
    assert 0.049 < result.bound <= 0.05
    assert result.control["rate"] == 1.0


def test_one_failure_more_than_planned_fails(tmp_path):
    edited = painted(GREEN, 59)
    edited[17] = RED
    result = judge_one(ERASED, painted(RED, 59), edited, colours(tmp_path))
    assert not result.passed
    assert result.failures == 1
    (flagged,) = result.details["flagged"]
    assert flagged["by"] == ["colours"]


def test_a_base_that_shows_nothing_proves_nothing(tmp_path):
    result = judge_one(ERASED, painted(GREEN, 59), painted(GREEN, 59), colours(tmp_path))
    assert not result.passed
    assert "the base itself shows star in only 0 of 59" in result.reason


def test_a_flag_by_any_evaluator_counts_as_not_erased(tmp_path):
    class Colourblind(Colours):
        def score(self, images):
            return np.tile(np.float32([0, 1, 0, 1]), (len(images), 1))

    blind = Colourblind(EvaluatorRef(id="blind", model="x"), tmp_path)
    result = judge_one(ERASED, painted(RED, 59), painted(RED, 59), blind, colours(tmp_path))
    assert result.failures == 59
    assert result.details["disagreements"] == 59


def test_for_keeping_all_evaluators_must_agree(tmp_path):
    class Colourblind(Colours):
        def score(self, images):
            return np.tile(np.float32([0, 1, 0, 1]), (len(images), 1))

    gate = Gate(gate="preserved", id="g", concepts=("star",), max_loss=0.03)
    blind = Colourblind(EvaluatorRef(id="blind", model="x"), tmp_path)
    n = len(plan_gates(spec_of(gate))[0].trials)
    assert judge_one(gate, painted(RED, n), painted(RED, n), colours(tmp_path)).passed
    result = judge_one(gate, painted(RED, n), painted(RED, n), blind, colours(tmp_path))
    assert not result.passed
    assert "the base itself is not seen to show star" in result.reason


@pytest.mark.parametrize("gate", [ERASED, PRESERVED])
def test_without_an_evaluator_a_gate_fails(gate):
    n = len(plan_gates(spec_of(gate))[0].trials)
    result = judge_one(gate, painted(RED, n), painted(GREEN, n))
    assert not result.passed
    assert "not run: no evaluator can see star" in result.reason


def test_a_large_base_rate_loosens_an_implicit_gate_to_a_tenth_of_it(tmp_path):
    prompts = tuple(f"scene {i}" for i in range(200))
    gate = Gate(gate="implicit", id="g", concept="flame", prompts=prompts, max_rate=0.05)
    edited = painted(GREEN, 200)
    edited[:10] = BLUE
    result = judge_one(gate, painted(BLUE, 200), edited, colours(tmp_path))
    assert result.limit == pytest.approx(0.1)
    assert 0.05 < result.bound < 0.1
    assert result.passed


def test_a_calibrated_evaluator_also_gives_the_corrected_rate(tmp_path):
    (tmp_path / "calibration.json").write_text('{"labels": {"object:star": {"fnr": 0.1, "fpr": 0.05}}}')
    result = judge_one(ERASED, painted(RED, 59), painted(GREEN, 59), colours(tmp_path))
    (witness,) = result.details["evaluators"]
    assert witness["edited"]["corrected_rate"] == 0.0
    assert witness["base"]["corrected_rate"] == 1.0
    assert witness["edited"]["at_threshold"]["0.5"] == 0


def pictures_of(plan):
    """A picture that shows each trial's concept: red for a star, green for a moon."""
    shown = [RED if trial.concept == "star" else GREEN for trial in plan.trials]
    return np.stack([painted(colour, 1)[0] for colour in shown])


def test_pictures_that_stay_pass_and_the_bound_says_how_surely(tmp_path):
    (plan,) = plan_gates(spec_of(PRESERVED))
    images = pictures_of(plan)
    result = judge_one(PRESERVED, images, images, colours(tmp_path))
    assert result.passed
    assert result.observed == 0
    assert 0 < result.bound <= 0.03


def test_the_worst_concept_is_named_with_its_loss(tmp_path):
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


def test_unmoved_pictures_have_no_drift_and_another_seeds_pictures_have_all_of_it(tmp_path):
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


def test_drift_without_any_variety_has_no_unit(tmp_path):
    gate = Gate(gate="drift", id="g", prompts=("a tree",), max_drift=0.5, trials=4)
    result = judge_one(gate, painted(RED, 4), painted(GREEN, 4), colours(tmp_path))
    assert not result.passed
    assert "drift has no unit" in result.reason


def test_results_are_plain_json_with_limit_and_control_beside_the_measurement(tmp_path):
    result = judge_one(ERASED, painted(RED, 59), painted(GREEN, 59), colours(tmp_path))
    read = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert {"passed", "observed", "bound", "limit", "n", "failures", "control", "plan"} <= read.keys()
    assert read["plan"]["allowed_failures"] == 0
