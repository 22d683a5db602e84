"""Neighbours are asked for without a tensor, mined once, and then known to every plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.mining import Mining, known_neighbours, mine_all, mined, mining_of, nearest
from compiler.passes import PassContext, discover
from compiler.plan import make_plan
from compiler.progress import Silent
from editspec import EditSpec, parse_spec

CPU = choose("cpu")
STAR = {"edit": "erase", "concept": "star", "aliases": ["sixstar"], "preserve": ["ring"]}


def spec_of(*edits: dict[str, Any], auto: int = 3) -> EditSpec:
    document = {"editspec": 1, "name": "test", "base": {"path": "tiny"}, "edits": list(edits)}
    return parse_spec(json.dumps({**document, "preserve": {"concepts": ["tree"], "auto": auto}}))


def asked(spec: EditSpec) -> Mining | None:
    edit: Any = spec.edits[0]
    return mining_of(edit, (edit.concept,), spec)


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


def context_of(spec: EditSpec, base: Checkpoint) -> PassContext:
    return PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Silent())


def test_what_the_spec_edits_or_keeps_by_name_is_no_neighbour() -> None:
    mining = asked(spec_of(STAR, {"edit": "erase", "concept": "moon", "method": "closed-form"}))
    assert mining == Mining(("star",), 3, ("moon", "ring", "sixstar", "star", "tree"))


@pytest.mark.parametrize("method", ["esd", "closed-form"])
def test_nothing_is_mined_for_sensitive_content_whose_neighbours_imply_it(method: str) -> None:
    assert asked(spec_of({"edit": "erase", "concept": "flame", "method": method, "kind": "content"})) is None


def test_nothing_is_mined_where_none_are_wanted_or_nothing_is_kept() -> None:
    assert asked(spec_of(STAR, auto=0)) is None
    assert asked(spec_of({**STAR, "keep_weight": 0})) is None


def test_the_answer_is_unknown_until_it_is_mined_and_then_read_from_the_cache(base: Checkpoint) -> None:
    spec = spec_of(STAR)
    mining, context = asked(spec), context_of(spec, base)
    assert mining is not None
    assert known_neighbours(mining, base, context.cache, CPU.device_class) is None
    found = mined(mining, context)
    assert len(found) == 3
    assert not {word for word, _ in found} & set(mining.exclude)
    assert known_neighbours(mining, base, context.cache, CPU.device_class) == found
    assert mined(mining, context) == found


def test_mining_ahead_finds_to_the_last_bit_what_a_build_would(base: Checkpoint, tmp_path: Path) -> None:
    questions = [asked(spec_of({**STAR, "concept": word, "aliases": []})) for word in ("star", "moon")]
    ahead = StageCache(tmp_path)
    mine_all([one for one in questions if one], base, ahead, CPU)
    for question in reversed(questions):
        assert question is not None
        built = mined(question, context_of(spec_of(STAR), base))
        assert known_neighbours(question, base, ahead, CPU.device_class) == built


def test_for_several_subjects_a_word_counts_with_its_greatest_cosine(base: Checkpoint) -> None:
    hood = context_of(spec_of(STAR), base).neighbourhood()
    both = Mining(("star", "moon"), 400, ("moon", "star"))
    star, moon = (dict(nearest(replace(both, subjects=(one,)), hood)) for one in both.subjects)
    found = dict(nearest(both, hood))
    assert found == {word: max(star.get(word, -1.0), moon.get(word, -1.0)) for word in {*star, *moon}}


def _edits() -> list[dict[str, Any]]:
    flame = {"edit": "erase", "concept": "flame", "kind": "content", "method": "closed-form"}
    shift = {"id": "calm", "edit": "shift", "direction": {"prompt": "a scene", "negative_prompt": "a fire"}}
    guide = {"edit": "guide", "id": "away", "away_from": ["crack", "spill"]}
    return [STAR, flame, shift, guide, {"edit": "ablate", "concept": "heart", "anchor": "shape"}]


def test_every_kind_of_edit_shows_its_neighbours_in_the_plan_once_they_are_mined(base: Checkpoint) -> None:
    spec = spec_of(*_edits())
    before = make_plan(spec, base, StageCache(), CPU)
    shown = {id: words for planned in before.passes for id, words in planned.neighbours.items()}
    open_questions = ("erase-star", "calm", "away", "ablate-heart")
    assert shown == {"erase-flame": (), **dict.fromkeys(open_questions)}
    mine_all(before.unmined, base, StageCache(), CPU)
    after = make_plan(spec, base, StageCache(), CPU)
    assert after.unmined == ()
    rows = {id: len(words or ()) for planned in after.passes for id, words in planned.neighbours.items()}
    assert rows == {"erase-flame": 0, **dict.fromkeys(open_questions, 3)}
    assert after.as_dict() == before.as_dict(), "what the cache holds is no part of the stored plan"


def test_a_build_keeps_the_neighbours_that_the_plan_shows(base: Checkpoint) -> None:
    short = {"steps": 1, "trajectories": 2, "sampling_steps": 1, "timesteps": 1, "batch": 1}
    spec = spec_of({**STAR, **short})
    mine_all(make_plan(spec, base, StageCache(), CPU).unmined, base, StageCache(), CPU)
    (planned,) = make_plan(spec, base, StageCache(), CPU).passes
    (edit,) = spec.edits
    (engine,) = (one for one in discover() if one.accepts(edit))
    kept = engine.run((edit,), context_of(spec, base)).record["neighbours"][edit.id]
    assert [word for word, _ in kept] == [word for word, _ in planned.neighbours[edit.id] or ()]
