from __future__ import annotations

import json
from typing import Any

import pytest

from editspec import SpecErrors, parse_spec


def mistakes(*edits: dict[str, Any], **rest: Any) -> list[tuple[str, str]]:
    document = {"editspec": 1, "name": "test", "base": {"path": "miniature"}, "edits": list(edits), **rest}
    try:
        parse_spec(json.dumps(document))
    except SpecErrors as errors:
        return [(diagnostic.pointer, diagnostic.message) for diagnostic in errors.diagnostics]
    return []


STAR = {"edit": "erase", "concept": "star"}
FLAME = {"edit": "erase", "concept": "flame", "aliases": ["fire"]}


def test_two_methods_may_erase_one_concept() -> None:
    assert mistakes(STAR, {**STAR, "id": "again", "method": "closed-form", "anchor": "shape"}) == []


def test_what_is_erased_from_one_thing_may_be_preserved_elsewhere() -> None:
    assert (
        mistakes({"edit": "erase", "concept": "hat", "from": "cowboy"}, preserve={"concepts": ["hat"]}) == []
    )


def test_what_an_edit_erases_something_from_must_stay() -> None:
    hat = {"edit": "erase", "concept": "hat", "from": "star"}
    assert [pointer for pointer, _ in mistakes(STAR, hat)] == ["/edits/1/from"]


def test_an_anchor_may_be_a_part_of_the_concept_but_not_hold_it() -> None:
    assert mistakes({"edit": "ablate", "concept": "grumpy cat", "anchor": "cat"}) == []
    assert len(mistakes({"edit": "ablate", "concept": "cat", "anchor": "grumpy cat"})) == 1
    assert mistakes({"edit": "ablate", "concept": "cat", "anchor": "cathedral"}) == []


def test_preserving_what_goes_is_found_whatever_the_spelling() -> None:
    assert [p for p, _ in mistakes(FLAME, preserve={"concepts": ["moon", "FIRE"]})] == [
        "/preserve/concepts/1"
    ]


def test_the_default_concepts_of_a_gate_are_not_blamed_twice() -> None:
    found = mistakes(FLAME, preserve={"concepts": ["flame"]}, gates=[{"gate": "preserved"}])
    assert [pointer for pointer, _ in found] == ["/preserve/concepts/0"]


@pytest.mark.parametrize("concept", ["flame", "Fire", "spill", "crack"])
def test_a_gate_may_judge_whatever_an_edit_takes_away(concept: str) -> None:
    shift = {"edit": "shift", "direction": {"prompt": "a scene", "negative_prompt": "a red spill"}}
    guide = {"edit": "guide", "away_from": ["crack"]}
    assert mistakes(FLAME, shift, guide, gates=[{"gate": "erased", "concept": concept}]) == []


@pytest.mark.parametrize(
    ("max_rate", "confidence", "least"),
    [(0.05, 0.95, 59), (0.02, 0.95, 149), (0.01, 0.95, 299), (0.005, 0.95, 598), (0.001, 0.95, 2995)],
)
def test_too_few_trials_for_the_limit_are_refused(max_rate: float, confidence: float, least: int) -> None:
    gate = {"gate": "erased", "concept": "flame", "max_rate": max_rate, "confidence": confidence}
    assert mistakes(FLAME, gates=[{**gate, "trials": least}]) == []
    assert len(mistakes(FLAME, gates=[{**gate, "trials": least - 1}])) == 1


def test_a_base_without_evaluators_of_its_own_needs_some_for_all_gates_but_drift() -> None:
    base = {"base": {"path": "./sd15"}}
    drift = {"gate": "drift", "max_drift": 0.2}
    erased = {"gate": "erased", "concept": "flame"}
    judge = {"id": "judge", "model": "./resnet"}
    assert mistakes(FLAME, gates=[drift], **base) == []
    assert [pointer for pointer, _ in mistakes(FLAME, gates=[drift, erased], **base)] == ["/gates/1"]
    assert mistakes(FLAME, gates=[drift, erased], evaluators=[judge], **base) == []


def test_a_prompt_that_cannot_fit_any_window_is_refused() -> None:
    long = {"edit": "erase", "concept": " ".join(["word"] * 76)}
    assert [pointer for pointer, _ in mistakes(long)] == ["/edits/0/concept"]
    assert mistakes({"edit": "erase", "concept": " ".join(["word"] * 75)}) == []


def test_a_phrase_may_use_a_balance() -> None:
    fair = {"edit": "balance", "id": "fair", "prompts": ["a baker"], "groups": ["zan", "zin"]}
    respond = {"edit": "respond", "phrases": [{"text": "fair gender", "use": "fair"}]}
    assert mistakes(fair, respond) == []


def test_intersections_are_balanced_to_equal_shares() -> None:
    balance = {
        "edit": "balance",
        "prompts": ["a {}"],
        "professions": ["baker"],
        "groups": [["a", "b"], ["c", "d"]],
    }
    assert mistakes(balance) == []
    assert [p for p, _ in mistakes({**balance, "shares": [0.5, 0.5]})] == ["/edits/0/shares"]


def test_a_group_beside_the_profession_needs_prompts_that_are_templates() -> None:
    balance = {
        "edit": "balance",
        "prompts": ["a {}", "a person"],
        "professions": ["baker"],
        "groups": ["a", "b"],
        "group_template": "{group} {profession}",
    }
    assert [p for p, _ in mistakes(balance)] == ["/edits/0/prompts/1"]
    assert mistakes({**balance, "prompts": ["a {}"]}) == []


def test_shares_need_not_be_equal() -> None:
    balance = {
        "edit": "balance",
        "prompts": ["a baker"],
        "groups": ["a", "b", "c"],
        "shares": [0.7, 0.2, 0.1],
    }
    assert mistakes(balance) == []
