"""What is kept is shown by more trajectories to weights that read no text."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from compiler.bank import Bank
from compiler.keep import TRAJECTORIES_OF_A_CONCEPT, TRAJECTORIES_WITHOUT_TEXT, keep_requests, keep_terms
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


IMAGE = {"edit": "ablate", "kind": "image", "concept": "sun", "image": "sun.png", "captions": ["the sun"]}
TOLD = {"the moon": 0, "a heart": 1}


def _kept_rows(edit: dict[str, Any], apart: list[float]) -> list[int]:
    """How often each row is kept: half of "the moon", half of "a heart", as words change it so."""
    rows = len(apart)
    empty = torch.zeros(rows, 1, 2, 2)
    shard = {
        "timestep": torch.zeros(rows),
        "prompt": torch.arange(rows) * 2 // rows,
        "uncond": empty,
        "cond": empty + torch.tensor(apart)[:, None, None, None],
    }
    joint, spec = spec_of(edit)
    requests = keep_requests(joint, spec, ())
    kept, _ = keep_terms(joint, requests, Bank(tuple(TOLD), (shard,)), range(rows), TOLD)
    found = kept.examples[:, 0].tolist()
    return [found.count(row) for row in range(rows)]


def test_another_images_caption_is_kept_most_where_it_decides_and_concepts_everywhere_alike() -> None:
    asked = {**IMAGE, "preserve": ["the moon"]}
    assert _kept_rows(asked, [2.0, 0.0, 1.0, 0.0, 2.0, 0.0, 1.0, 0.0]) == [4, 1, 1, 1, 1, 1, 1, 1]


def test_concepts_of_other_kinds_are_kept_everywhere_alike() -> None:
    assert _kept_rows({**ERASE, "preserve": ["the moon"]}, [2.0, 0.0, 1.0, 0.0]) == [1, 1, 1, 1]


def test_a_caption_that_the_whole_spec_preserves_is_no_case_of_its_own() -> None:
    assert _kept_rows({**IMAGE, "preserve": ["moon"]}, [2.0, 0.0, 1.0, 0.0]) == [1, 1, 1, 1]
