from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.checkpoint import Checkpoint
from compiler.collateral import TRIALS, collateral, collateral_evals, mined_words, watched
from compiler.gates.gate import GatePlan, GateResult
from compiler.gates.report import GateReport
from compiler.generate import Sampler
from editspec import EditSpec, Gate, parse_spec


def _spec(auto: int = 2) -> EditSpec:
    document = {
        "editspec": 1,
        "name": "test",
        "base": {"path": "tiny"},
        "edits": [{"edit": "erase", "concept": "star", "aliases": ["sixstar"]}],
        "preserve": {"concepts": ["moon"], "auto": auto},
        "evaluators": [{"id": "judge", "model": "judge"}],
        "gates": [{"gate": "preserved", "steps": 2}],
    }
    return parse_spec(json.dumps(document))


def _report(**losses: int) -> GateReport:
    rows = [{"concept": name, "n": 20, "base": 20, "edited": 20 - lost} for name, lost in losses.items()]
    plan = GatePlan(Gate(gate="preserved", id="kept"), (), 0.1)
    return GateReport((GateResult(plan, True, "", details={"concepts": rows}),))


class Judge:
    """Sees "house" in bright pictures and "tree" never; knows no other word."""

    id = "judge"
    labels = ("house", "tree")

    def label_for(self, concept: str, label: str | None = None) -> str | None:
        return concept if concept in self.labels else None

    def score(self, images: Any) -> Any:
        bright = images.reshape(len(images), -1).mean(1) > 100
        return np.stack([bright, np.zeros(len(images))], axis=1)

    def shows(self, scores: Any, label: str) -> Any:
        return scores[:, self.labels.index(label)] > 0.5


def test_neighbours_stand_nearest_first_and_the_worst_is_named(tiny_checkpoint: Path) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    found = collateral(_report(moon=2, ring=9, house=0), _spec(), base, base, (), ())
    cosines = [row["cosine"] for row in found["concepts"]]
    assert cosines == sorted(cosines, reverse=True)
    assert {row["concept"]: row["loss"] for row in found["concepts"]} == {
        "moon": 0.1,
        "ring": 0.45,
        "house": 0,
    }
    assert {row["near"] for row in found["concepts"]} <= {"star", "sixstar"}
    assert found["worst"] == "ring"
    assert json.loads(json.dumps(found)) == found


def test_where_nothing_was_lost_nothing_is_the_worst(tiny_checkpoint: Path) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    assert collateral(_report(moon=0), _spec(), base, base, (), ())["worst"] is None
    assert collateral(GateReport(()), _spec(), base, base, (), ()) == {"concepts": [], "worst": None}


def test_a_mined_neighbour_is_drawn_by_both_models_if_someone_can_see_it(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    sides = iter([255, 0])  # the base draws it, the edited model no more

    def images(self: Sampler, draws: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        assert len(draws) == TRIALS == len(set(draws))
        return np.full((len(draws), 4, 4, 3), next(sides), np.uint8)

    monkeypatch.setattr(Sampler, "images", images)
    judge: Any = Judge()
    found = collateral(_report(moon=1), _spec(), base, base, (judge,), ["house", "ring", "moon"])
    rows = {row["concept"]: row for row in found["concepts"]}
    assert set(rows) == {"moon", "house"}, "nobody can see a ring, and the moon is measured already"
    assert (rows["house"]["base"], rows["house"]["edited"], rows["house"]["loss"]) == (TRIALS, 0, 1.0)
    assert found["worst"] == "house"


def test_the_plan_counts_what_the_report_may_draw() -> None:
    assert collateral_evals(_spec(auto=0)) == 0
    assert collateral_evals(_spec(auto=3)) == 2 * 2 * 3 * TRIALS * 2


def test_mined_words_are_found_in_every_kind_of_record() -> None:
    records: list[dict[str, Any]] = [
        {"record": {"neighbours": {"a": [["moon", 0.5]], "b": [["ring", 0.4], ["moon", 0.3]]}}},
        {"record": {"neighbours": [["tree", 0.2]]}},
        {"record": {}},
    ]
    assert mined_words(records) == ("moon", "ring", "tree")


def test_a_concept_that_two_gates_watch_is_counted_once() -> None:
    report = GateReport((*_report(moon=1).results, *_report(moon=5).results))
    assert watched(report)["moon"]["loss"] == 0.05
