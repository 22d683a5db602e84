"""What is kept is shown by more trajectories to weights that read no text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compiler.keep import TRAJECTORIES_OF_A_CONCEPT, TRAJECTORIES_WITHOUT_TEXT, keep_requests
from editspec import Edit, EditSpec, parse_spec

ERASE = {"edit": "erase", "method": "esd", "concept": "star"}
SHIFT = {"edit": "shift", "direction": {"prompt": "a scene", "negative_prompt": "star"}}
KEPT = ["moon", "heart", "fish"]


def spec_of(edit: dict[str, Any]) -> tuple[Edit, EditSpec]:
    document = {
        "editspec": 1, "name": "keep", "base": {"path": "base"}, "seed": 3,
        "edits": [edit], "preserve": {"concepts": KEPT},
    }  # fmt: skip
    spec = parse_spec(json.dumps(document))
    return spec.edits[0], spec


@pytest.mark.parametrize("selection", ["cross-attention", "cross-attention-kv"])
def test_weights_that_read_the_concepts_name_are_shown_a_few_trajectories(selection: str) -> None:
    (request,) = keep_requests(*spec_of({**ERASE, "selection": selection}), ())
    assert request.total == len(KEPT) * TRAJECTORIES_OF_A_CONCEPT


@pytest.mark.parametrize("selection", ["non-cross-attention", "self-attention", "full"])
def test_weights_that_read_no_text_are_shown_more(selection: str) -> None:
    (request,) = keep_requests(*spec_of({**ERASE, "selection": selection}), ())
    assert request.total == len(KEPT) * TRAJECTORIES_WITHOUT_TEXT > len(KEPT) * TRAJECTORIES_OF_A_CONCEPT
    assert all(any(name in prompt for prompt in request.prompts) for name in KEPT)


def test_a_shift_of_few_numbers_needs_no_more() -> None:
    (request,) = keep_requests(*spec_of(SHIFT), ())
    assert request.total == len(KEPT) * TRAJECTORIES_OF_A_CONCEPT


def test_an_edit_that_weighs_nothing_kept_asks_for_no_bank() -> None:
    assert keep_requests(*spec_of({**ERASE, "keep_weight": 0}), ()) == []
