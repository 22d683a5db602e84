from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import compiler.judging
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.few_pictures import draws_of, gates_on, holds, stays, trials_of
from compiler.judging import Judge
from compiler.passes import PassContext
from compiler.passes.erase_esd import EraseEsd
from compiler.progress import Silent
from compiler.strength import (
    CONFIRMING,
    LADDER,
    MOST_CONFIRMING,
    PICTURES,
    TRIALS,
    Trial,
    confirming,
    front,
    ladder,
    least,
    mildest,
)
from editspec import EditSpec, Erase, Gate, parse_spec

SHORT = {"steps": 1, "guidance_scale": 1.0}
EDIT = {
    "edit": "erase",
    "concept": "star",
    "strength": "auto",
    "steps": 4,
    "learning_rate": 0.002,
    "batch": 2,
    "trajectories": 3,
    "timesteps": 2,
    "sampling_steps": 2,
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that sees a star and no moon in every picture."""
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("models") / "judge"
    labels = {0: "a:star", 1: "a:none", 2: "b:moon", 3: "b:none"}
    ids = {label: number for number, label in labels.items()}
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label=labels, label2id=ids
    )
    model = ResNetForImageClassification(config)
    with torch.no_grad():
        model.classifier[1].weight.zero_()
        model.classifier[1].bias.copy_(torch.tensor([9.0, 0.0, 0.0, 9.0]))
    model.save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=1.0).save_pretrained(folder)
    return folder


def _spec(judge: Path | str = "judge", **changed: Any) -> EditSpec:
    document = {
        "editspec": 1,
        "name": "test",
        "base": {"path": "tiny"},
        "edits": [{**EDIT, **changed}],
        "preserve": {"concepts": ["house"]},
        "evaluators": [{"id": "judge", "model": str(judge)}],
        "gates": [
            {"gate": "erased", "concept": "star", **SHORT},
            {"gate": "preserved", "concepts": ["moon"], "max_loss": 0.03, **SHORT},
        ],
    }
    return parse_spec(json.dumps(document))


def _edit(**changed: Any) -> Erase:
    (edit,) = _spec(**changed).edits
    assert isinstance(edit, Erase)
    return edit


def _context(spec: EditSpec, tiny: Path) -> PassContext:
    return PassContext(
        spec, Checkpoint.open(tiny), {}, spec.seed, torch.device("cpu"), StageCache(), Silent()
    )


class Scales:
    """Says that the concept is gone once the weights moved by more than `enough`, and counts its trials."""

    enough = 0.0
    lucky = 0.0  # up to here the first pictures look well and fresh ones do not
    harmful = 0  # so many settings that erase take something along
    looked: ClassVar[list[float]] = []

    def __init__(self, context: PassContext, gates: Any, beside: Any) -> None:
        self.evals = 0
        Scales.looked = []

    def losses(self, deltas: Mapping[str, Tensor], numbers: range) -> tuple[int, int, bool]:
        norm = sum(float(delta.square().sum()) for delta in deltas.values()) ** 0.5
        if norm not in Scales.looked:
            Scales.looked.append(norm)
        lost = max(0, self.harmful - Scales.looked.index(norm))
        return lost, len(numbers), not lost

    def __call__(self, deltas: Mapping[str, Tensor], numbers: range) -> tuple[int, int, bool]:
        norm = sum(float(delta.square().sum()) for delta in deltas.values()) ** 0.5
        seen = 7 if norm <= self.enough or (numbers.start and norm <= self.lucky) else 0
        return seen, len(numbers), not seen


def _searched(
    spec: EditSpec,
    tiny: Path,
    enough: float,
    monkeypatch: pytest.MonkeyPatch,
    lucky: float = 0.0,
    harmful: int = 0,
) -> dict[str, Any]:
    monkeypatch.setattr(Scales, "harmful", harmful)
    monkeypatch.setattr(Scales, "enough", enough)
    monkeypatch.setattr(Scales, "lucky", lucky)
    monkeypatch.setattr(compiler.judging, "Judge", Scales)
    context = _context(spec, tiny)
    result = EraseEsd().run(spec.edits, context)
    assert result.record["evals"] <= EraseEsd().cost(spec.edits, spec, context.checkpoint).evals
    assert any(delta.any() for delta in result.deltas.values())
    found: dict[str, Any] = result.record["strength"]
    assert json.loads(json.dumps(found)) == found
    return found


def test_where_all_strengths_hold_the_one_of_least_drift_is_taken(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _searched(_spec(), tiny_checkpoint, 0.0, monkeypatch)
    assert [one["negative_guidance"] for one in found["tried"]] == [1.0, 0.0, 0.0]
    assert [one["steps"] for one in found["tried"]] == [4, 6, 8]
    assert found["chosen"]["pictures"] == CONFIRMING
    assert found["chosen"]["drift"] == min(one["drift"] for one in found["tried"])
    assert found["chosen"]["holds"]
    assert found["chosen"] in found["front"]


def test_where_none_holds_the_search_ends_at_the_top_with_more_steps(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _searched(_spec(), tiny_checkpoint, 1e9, monkeypatch)
    assert [one["negative_guidance"] for one in found["tried"]] == [1.0, 3.0, 4.6, 4.6]
    assert [one["steps"] for one in found["tried"]] == [4, 6, 8, 12]
    assert not found["chosen"]["holds"]


def test_what_was_only_lucky_in_few_pictures_gives_way_to_the_next(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than any setting moves the weights: whatever held in its first pictures fails in fresh ones.
    found = _searched(_spec(), tiny_checkpoint, 0.0, monkeypatch, lucky=1e9)
    tried = [one["negative_guidance"] for one in found["tried"]]
    assert tried == [1.0, 0.0, 0.0, 1.8, 3.0, 4.6]
    assert len(tried) == TRIALS
    assert not any(one["holds"] for one in found["tried"])
    assert all(one["pictures"] == CONFIRMING for one in found["tried"])


def test_where_others_go_along_training_goes_on_with_more_weight_on_what_is_kept(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _searched(_spec(), tiny_checkpoint, 0.0, monkeypatch, harmful=4)
    tried = found["tried"]
    # The bisection and its longer training first; then on from the least harmful of these.
    assert [one.get("keep", 1.0) for one in tried] == [1.0, 1.0, 1.0, 2.0, 4.0]
    assert tried[3]["negative_guidance"] == tried[2]["negative_guidance"]
    assert tried[3]["steps"] == tried[2]["steps"] + 2
    assert [one["loss"] > 0 for one in tried] == [True, True, True, True, False]
    assert found["chosen"] == tried[4]
    assert found["chosen"]["beside"] == CONFIRMING


def test_where_all_settings_take_others_along_the_least_harmful_is_taken(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _searched(_spec(), tiny_checkpoint, 0.0, monkeypatch, harmful=100)
    assert len(found["tried"]) == TRIALS
    assert not found["chosen"]["holds"]
    assert found["chosen"]["loss"] == min(one["loss"] for one in found["tried"])


def test_the_same_search_gives_the_same_bits(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scales, "enough", 0.0)
    monkeypatch.setattr(compiler.judging, "Judge", Scales)
    spec = _spec()
    one, other = (EraseEsd().run(spec.edits, _context(spec, tiny_checkpoint)) for _ in range(2))
    assert one.record == other.record
    assert all(torch.equal(other.deltas[name], delta) for name, delta in one.deltas.items())


def test_the_judge_sees_real_pictures_and_leaves_the_base_alone(tiny_checkpoint: Path, judge: Path) -> None:
    spec = _spec(judge)
    context = _context(spec, tiny_checkpoint)
    judging = Judge(context, spec.gates[:1])
    before = {k: v.clone() for k, v in judging._sampler.pipeline.unet.named_parameters()}
    name = next(iter(before))
    assert judging({name: torch.ones_like(before[name])}, range(PICTURES)) == (PICTURES, PICTURES, False)
    assert judging.evals == 2 * PICTURES * 1
    after = dict(judging._sampler.pipeline.unet.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    # Neither model shows a moon, so none can be lost.
    assert Judge(context, (), spec.gates[1:]).losses({name: torch.ones_like(before[name])}, range(4)) == (
        0,
        4,
        True,
    )
    unseen = Gate(gate="erased", id="moon", concept="moon", max_rate=0.05, prompts=("a {}",), steps=1)
    assert Judge(context, [unseen])({}, range(PICTURES)) == (0, PICTURES, True)


def test_what_the_gates_ask_is_part_of_the_key(judge: Path) -> None:
    spec = _spec(judge)
    own = EraseEsd().reads(spec.edits, spec)
    assert [gate["gate"] for gate in own["judged"][0]["gates"]] == ["erased", "preserved"]
    assert "judged" not in EraseEsd().reads(_spec(judge, strength="fixed").edits, _spec(judge))


def test_the_search_never_looks_at_the_pictures_of_the_gate() -> None:
    from compiler.gates import plan_gates

    spec = _spec()
    draws, _ = draws_of(spec.gates[0], spec, range(PICTURES))
    fresh, _ = draws_of(spec.gates[0], spec, range(PICTURES, CONFIRMING))
    assert len({*draws, *fresh}) == CONFIRMING
    beside, _ = trials_of(spec.gates[1], spec, range(CONFIRMING))
    assert {trial.concept for trial in beside} == {"moon"}
    looked_at = {*draws, *fresh, *(trial.draw for trial in beside)}
    assert not looked_at & {draw for plan in plan_gates(spec) for draw in plan.draws}


@given(st.floats(0.001, 1.0))
def test_the_less_a_gate_allows_the_more_pictures_confirm_a_setting(allowed: float) -> None:
    spec = _spec()
    gate = replace(spec.gates[0], max_rate=allowed)
    edit = spec.edits[0]
    assert isinstance(edit, Erase)
    count = confirming(edit, replace(spec, gates=(gate, *spec.gates[1:])))
    assert CONFIRMING <= count <= MOST_CONFIRMING
    if allowed >= 0.05:
        assert count == CONFIRMING
    if 0.015 < allowed < 0.05:
        assert abs(count * allowed - 3) <= allowed


def test_an_alias_has_its_gates_too() -> None:
    spec = _spec(concept="ring", aliases=["star"])
    assert gates_on(spec.edits[0], spec) == spec.gates[:1]  # type: ignore[arg-type]


def test_few_pictures_must_be_cleaner_than_the_gate_asks() -> None:
    gate = Gate(gate="erased", id="x", concept="star", max_rate=0.2)
    assert holds(2, 20, gate)
    assert not holds(3, 20, gate)


def test_few_pictures_may_lose_half_of_what_the_gate_allows() -> None:
    gate = Gate(gate="preserved", id="x", concepts=("moon",), max_loss=0.1)
    assert stays(1, 20, gate)
    assert stays(-3, 20, gate)
    assert not stays(2, 20, gate)


def test_one_picture_lost_among_few_may_be_chance() -> None:
    gate = Gate(gate="preserved", id="x", concepts=("moon",), max_loss=0.03)
    assert stays(1, 20, gate)
    assert not stays(2, 20, gate)
    assert not stays(2, 100, gate)


TRIALS_DONE = st.lists(
    st.builds(
        Trial,
        st.sampled_from(LADDER),
        st.just(4),
        st.integers(0, 20),
        st.just(20),
        st.floats(0, 1),
        st.booleans(),
    ),
    min_size=1,
)


@given(TRIALS_DONE)
def test_every_trial_is_on_the_front_or_beaten_by_one_that_is(trials: list[Trial]) -> None:
    best = front(trials)
    assert best
    for one in trials:
        assert one in best or any(b.rate <= one.rate and b.drift <= one.drift for b in best)
    drifts = [one.drift for one in best]
    assert drifts == sorted(drifts)


@given(TRIALS_DONE)
def test_of_the_trials_that_hold_the_mildest_comes_first(trials: list[Trial]) -> None:
    order = mildest(trials)
    assert sorted(order) == [number for number, one in enumerate(trials) if one.holds]
    drifts = [trials[number].drift for number in order]
    assert drifts == sorted(drifts)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6, unique=True), st.floats(0, 10))
def test_bisection_finds_the_least_rung_that_holds_in_three_trials(rungs: list[float], needed: float) -> None:
    rungs, asked = sorted(rungs), list[float]()

    def holds_at(rung: float) -> bool:
        asked.append(rung)
        return rung >= needed

    found = least(rungs, holds_at)
    assert found == next((place for place, rung in enumerate(rungs) if rung >= needed), None)
    assert len(asked) <= 3


@given(st.floats(0, 100), st.booleans())
def test_the_ladder_rises_through_the_edits_own_strength(eta: float, attribute: bool) -> None:
    edit = _edit(negative_guidance=round(eta, 3), **({"from": "house"} if attribute else {}))
    etas = ladder(edit)
    assert list(etas) == sorted(set(etas))
    assert any(abs(one - edit.negative_guidance) < 1e-3 for one in etas)
    assert etas[0] >= 0
    assert etas[-1] <= 100
