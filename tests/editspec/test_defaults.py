from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editspec import (
    TEMPLATES,
    Ablate,
    Balance,
    Direction,
    Edit,
    EditSpec,
    Erase,
    Gate,
    Guide,
    Guided,
    Phrase,
    Respond,
    Shift,
    parse_spec,
)
from editspec.defaults import with_defaults


def spec(*edits: dict[str, Any], **rest: Any) -> EditSpec:
    base = {"editspec": 1, "name": "test", "base": {"path": "miniature"}, "edits": list(edits)}
    return parse_spec(json.dumps({**base, **rest}))


STAR = {"edit": "erase", "concept": "star"}
SHIFT = {"edit": "shift", "id": "calm", "direction": {"prompt": "a scene", "negative_prompt": "spill"}}

MINIMAL: list[tuple[dict[str, Any], Edit]] = [
    ({"edit": "erase", "concept": "star"}, Erase(id="erase-star", concept="star")),
    (
        {"edit": "erase", "concept": "star", "method": "closed-form"},
        Erase(id="erase-star", concept="star", method="closed-form"),
    ),
    (
        {"edit": "ablate", "concept": "grumpy cat", "anchor": "cat"},
        Ablate(id="ablate-grumpy-cat", concept="grumpy cat", anchor="cat"),
    ),
    (
        SHIFT,
        Shift(id="calm", directions=(Direction(prompt="a scene", negative_prompt="spill"),)),
    ),
    (
        {"edit": "balance", "prompts": ["a baker"], "groups": ["zan", "zin"]},
        Balance(id="balance-1", prompts=("a baker",), groups=(("zan", "zin"),)),
    ),
    (
        {"edit": "balance", "prompts": ["a baker"], "groups": ["zan", "zin"], "method": "closed-form"},
        Balance(id="balance-1", prompts=("a baker",), groups=(("zan", "zin"),), method="closed-form"),
    ),
]


@pytest.mark.parametrize(("document", "value"), MINIMAL, ids=lambda v: str(v)[:60])
def test_the_schema_and_the_values_have_the_same_defaults(document: dict[str, Any], value: Edit) -> None:
    assert spec(document).edits[0] == value


def test_the_gate_of_relearning_has_the_same_defaults_in_schema_and_value() -> None:
    (gate,) = spec(STAR, gates=[{"gate": "relearned", "concept": "star"}]).gates
    prompts = TEMPLATES["object"]
    assert gate == Gate(gate="relearned", id="relearned-star", concept="star", prompts=prompts, trials=20)


def test_guidance_gets_the_defaults_of_its_method() -> None:
    sega = spec({"edit": "guide", "away_from": ["crack", {"concept": "spill", "weight": 2}]}).edits[0]
    assert isinstance(sega, Guide)
    assert sega.away_from == (Guided(concept="crack"), Guided(concept="spill", weight=2.0))
    assert (sega.scale, sega.warmup, sega.threshold, sega.momentum_scale, sega.momentum_beta) == (
        5,
        10,
        0.9,
        0.1,
        0.4,
    )
    assert sega.branch == "both"
    strong = spec(
        {"edit": "guide", "method": "sld", "away_from": ["crack"], "preset": "strong", "scale": 9}
    ).edits[0]
    assert isinstance(strong, Guide)
    assert (strong.warmup, strong.scale, strong.threshold) == (7, 9, 0.025)
    assert (strong.momentum_scale, strong.momentum_beta, strong.branch) == (0.5, 0.7, "text")
    negative = spec({"edit": "guide", "method": "negative-prompt", "away_from": ["crack"]}).edits[0]
    assert isinstance(negative, Guide)
    assert (negative.branch, negative.scale) == ("empty", None)


def test_a_phrase_uses_another_edit_or_has_a_direction_of_its_own() -> None:
    phrases = [{"text": "without fire", "use": "calm"}, {"text": "calmly", "direction": SHIFT["direction"]}]
    edit = spec(SHIFT, {"edit": "respond", "phrases": phrases}).edits[1]
    direction = Direction(prompt="a scene", negative_prompt="spill")
    expected = (Phrase(text="without fire", use="calm"), Phrase(text="calmly", direction=direction))
    assert edit == Respond(id="respond-2", phrases=expected)


def test_a_memorised_image_is_forgotten_with_the_published_settings() -> None:
    document = {
        "edit": "ablate",
        "kind": "image",
        "concept": "poster",
        "image": "p.png",
        "captions": ["a poster"],
    }
    edit = spec(document).edits[0]
    assert isinstance(edit, Ablate)
    assert (edit.learning_rate, edit.steps, edit.selection) == (5e-7, 400, "full")


def test_templates_follow_the_kind_and_none_means_the_concept_alone() -> None:
    closed = {**STAR, "method": "closed-form"}
    style, alone = spec({**closed, "kind": "style"}).edits[0], spec({**closed, "templates": []}).edits[0]
    assert isinstance(style, Erase)
    assert isinstance(alone, Erase)
    assert style.templates == TEMPLATES["style"]
    assert alone.templates == ()


def test_a_gate_takes_kind_prompts_and_concepts_from_the_edits_and_what_is_preserved() -> None:
    made = spec(
        {"edit": "erase", "concept": "dotted", "kind": "style"},
        preserve={"concepts": ["moon"]},
        gates=[
            {"gate": "erased", "concept": "Dotted"},
            {"gate": "preserved"},
            {"gate": "drift", "max_drift": 0.2},
        ],
    )
    erased, preserved, drift = made.gates
    assert (erased.id, erased.kind, erased.prompts) == ("erased-dotted", "style", TEMPLATES["style"])
    assert (preserved.concepts, preserved.prompts) == (("moon",), TEMPLATES["object"])
    assert (drift.concepts, drift.prompts, drift.max_drift) == (("moon",), (), 0.2)


def test_the_json_key_from_becomes_from_concept() -> None:
    edit = spec({"edit": "erase", "concept": "hat", "from": "cowboy"}).edits[0]
    assert isinstance(edit, Erase)
    assert edit.from_concept == "cowboy"


@pytest.mark.parametrize(("document", "value"), MINIMAL, ids=lambda v: str(v)[:60])
def test_saying_a_default_aloud_changes_nothing(document: dict[str, Any], value: Edit) -> None:
    short = spec(document)
    assert spec(*short.document["edits"]).digest == short.digest
    assert with_defaults(short.document) == short.document


def test_the_digest_depends_on_what_is_meant_and_not_on_how_it_is_written() -> None:
    plain = spec(STAR)
    assert spec(STAR, **{"$schema": "./editspec.schema.json"}).digest == plain.digest
    assert spec(dict(reversed(STAR.items()))).digest == plain.digest
    assert spec(STAR, seed=0).digest == plain.digest
    assert spec(STAR, seed=1).digest != plain.digest
    assert spec({**STAR, "negative_guidance": 1}).digest == spec({**STAR, "negative_guidance": 1.0}).digest


@given(st.integers(0, 2**53 - 1), st.floats(0, 100), st.integers(1, 10**6))
def test_numbers_arrive_as_the_type_they_are(seed: int, eta: float, steps: int) -> None:
    made = spec({**STAR, "negative_guidance": eta, "steps": float(steps)}, seed=seed)
    edit = made.edits[0]
    assert isinstance(edit, Erase)
    assert (made.seed, edit.negative_guidance, edit.steps) == (seed, eta, steps)
    assert isinstance(edit.steps, int)


def test_a_spec_is_a_frozen_value_and_its_parts_can_be_found() -> None:
    made = spec(STAR, gates=[{"gate": "erased", "concept": "star"}])
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 3  # type: ignore[misc]
    assert made.edit("erase-star") is made.edits[0]
    assert made.pointer(made.edits[0]) == "/edits/0"
    assert made.pointer(made.gates[0]) == "/gates/0"
    assert {made, spec(STAR, gates=[{"gate": "erased", "concept": "star"}])} == {made}


def test_filling_in_defaults_leaves_the_document_alone() -> None:
    document = {"editspec": 1, "name": "t", "base": {"path": "miniature"}, "edits": [copy.deepcopy(STAR)]}
    before = copy.deepcopy(document)
    with_defaults(document)
    assert document == before
