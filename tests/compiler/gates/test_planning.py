from __future__ import annotations

import subprocess
import sys

import pytest

from compiler.gates import discover, plan_gates
from compiler.gates.gate import spread
from editspec import Edit, EditSpec, Erase, Gate, PathBase, Preserve, SpecErrors


def spec_of(
    *gates: Gate, edits: tuple[Edit, ...] = (), preserve: tuple[str, ...] = (), seed: int = 7
) -> EditSpec:
    base = PathBase(path="base")
    return EditSpec(
        name="s", base=base, edits=edits, gates=gates, preserve=Preserve(concepts=preserve), seed=seed
    )


PRESERVED = Gate(gate="preserved", id="keeps", concepts=("star", "moon"), max_loss=0.03)


def test_the_folder_walk_finds_every_gate_of_the_schema() -> None:
    assert sorted(discover()) == ["drift", "erased", "implicit", "neighbours", "preserved", "relearned"]


@pytest.mark.parametrize(
    ("trials", "n", "allowed"), [(None, 59, 0), (93, 93, 1), (100, 100, 1), (208, 208, 5)]
)
def test_an_erased_gate_plans_its_trials_and_the_failures_it_allows(
    trials: int | None, n: int, allowed: int
) -> None:
    gate = Gate(gate="erased", id="g", concept="star", max_rate=0.05, trials=trials)
    (plan,) = plan_gates(spec_of(gate))
    assert (len(plan.trials), plan.allowed, plan.limit) == (n, allowed, 0.05)


def test_aliases_are_drawn_as_often_as_the_concept() -> None:
    edit = Erase(id="e", concept="flame", aliases=("burning", "fire"))
    gate = Gate(gate="erased", id="g", concept="flame", max_rate=0.05, kind="content")
    (plan,) = plan_gates(spec_of(gate, edits=(edit,)))
    prompts = [draw.prompt for draw in plan.draws]
    assert {"a photo with flame", "a photo with burning", "fire"} <= set(prompts)
    counts = [prompts.count(prompt) for prompt in set(prompts)]
    assert max(counts) - min(counts) <= 1


def test_every_draw_has_a_seed_of_its_own_that_the_spec_decides() -> None:
    trials = spread([("a", None), ("b", None)], 100, 7)
    assert len({trial.draw.seed for trial in trials}) == 100
    assert spread([("b", None)], 10, 7) == tuple(t for t in trials if t.draw.prompt == "b")[:10]
    assert not {t.draw for t in spread([("a", None)], 100, 8)} & {t.draw for t in trials}


def test_gates_that_draw_the_same_count_it_once() -> None:
    neighbours = Gate(gate="neighbours", id="near", concepts=("star", "moon"), max_loss=0.03)
    first, second = plan_gates(spec_of(PRESERVED, neighbours))
    assert first.draws == second.draws
    assert first.evals == 2 * len(first.draws) * 25 * 2
    assert second.evals == 0


def test_paired_draws_are_as_many_for_each_concept() -> None:
    gate = Gate(gate="preserved", id="g", concepts=("star", "moon", "ring"), max_loss=0.03)
    (plan,) = plan_gates(spec_of(gate))
    concepts = [trial.concept for trial in plan.trials]
    assert len({concepts.count(concept) for concept in set(concepts)}) == 1
    assert all(trial.concept and trial.concept in trial.draw.prompt for trial in plan.trials)


def test_neighbours_are_those_given_and_those_preserved_but_never_what_is_edited() -> None:
    gate = Gate(gate="neighbours", id="g", concepts=("sixstar", "star"), max_loss=0.03)
    edits = (Erase(id="e", concept="star"),)
    (plan,) = plan_gates(spec_of(gate, edits=edits, preserve=("moon", "sixstar")))
    assert plan.as_dict()["concepts"] == ["sixstar", "moon"]


def test_implicit_prompts_are_each_drawn_at_least_once() -> None:
    prompts = tuple(f"a scene number {i}" for i in range(80))
    gate = Gate(gate="implicit", id="g", concept="flame", prompts=prompts, max_rate=0.05)
    (plan,) = plan_gates(spec_of(gate))
    assert sorted(draw.prompt for draw in plan.draws) == sorted(prompts)


def test_drift_draws_each_prompt_equally_often_and_at_least_twice() -> None:
    gate = Gate(gate="drift", id="g", prompts=("a tree", "a house", "a ring"), max_drift=0.2, trials=7)
    (plan,) = plan_gates(spec_of(gate))
    prompts = [draw.prompt for draw in plan.draws]
    assert [prompts.count(prompt) for prompt in gate.prompts] == [3, 3, 3]
    (plain,) = plan_gates(spec_of(Gate(gate="drift", id="g", max_drift=0.2)))
    assert len(plain.trials) == 60


def test_all_gates_that_cannot_prove_anything_are_refused_at_once() -> None:
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


def test_planning_gates_loads_no_heavy_library() -> None:
    program = (
        "import sys; from compiler.gates import plan_gates; from editspec import *\n"
        "gate = Gate(gate='erased', id='g', concept='star', max_rate=0.05)\n"
        "plan_gates(EditSpec(name='s', base=PathBase(path='b'), edits=(), gates=(gate,)))\n"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy', 'scipy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
