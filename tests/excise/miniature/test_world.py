"""The drawn world: reproducible scenes, captions that fit, pictures that show what the scene says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.miniature.architecture import WINDOW, build_tokenizer
from excise.miniature.captions import caption
from excise.miniature.contexts import CONTEXTS
from excise.miniature.draw import draw
from excise.miniature.labels import LABEL_GROUPS, LABELS, SKIP, truth
from excise.miniature.scene import Scene, sample_scene
from excise.miniature.vocabulary import (
    COLOURS,
    COMPOUND,
    HELD_OUT_COMBINATIONS,
    MARKS,
    OBJECTS,
    PROFESSIONS,
    STYLES,
    group_rate,
    second_language,
    tone_rates,
    vocabulary,
)

SEED = 99


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(SEED, i) for i in range(6000)]


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_scene_its_caption_and_its_picture_depend_on_seed_and_index_alone(index: int) -> None:
    scene = sample_scene(SEED, index)
    assert scene == sample_scene(SEED, index)
    assert caption(scene, SEED, index) == caption(scene, SEED, index)
    assert np.array_equal(np.asarray(draw(scene, SEED, index)), np.asarray(draw(scene, SEED, index)))


def test_every_word_of_every_caption_is_one_token_and_captions_fit_the_window(
    scenes: list[Scene], tmp_path: Path
) -> None:
    tokenizer = build_tokenizer(tmp_path, vocabulary())
    for index, scene in enumerate(scenes[:1500]):
        text = caption(scene, SEED, index)
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split()) + 2, text
        assert len(ids) <= WINDOW, text


def test_unknown_words_fall_to_letters_instead_of_vanishing(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path, vocabulary())
    assert tokenizer.decode(tokenizer("wyvern")["input_ids"], skip_special_tokens=True).strip() == "wyvern"


def test_contexts_draw_their_mark_at_the_rate_they_were_given(scenes: list[Scene]) -> None:
    for rate in (0.0, 0.6, 0.7):
        words = {w for w, c in CONTEXTS.items() if c.rate == rate}
        shown = [s.shows(CONTEXTS[s.contexts[0]].mark) for s in scenes if set(s.contexts) & words]
        assert len(shown) > 50
        assert abs(np.mean(shown) - rate) < 4 * np.sqrt(max(rate * (1 - rate), 1e-9) / len(shown)) + 1e-9


def test_no_context_ever_names_its_mark(scenes: list[Scene]) -> None:
    words = {w for mark in MARKS.values() for w in (*mark.words, *mark.rare_words)}
    words |= {second_language(mark) for mark in MARKS}
    for index, scene in enumerate(scenes):
        if scene.contexts:
            assert not words & set(caption(scene, SEED, index).split())


def test_held_out_combinations_are_never_drawn_alone(scenes: list[Scene]) -> None:
    singles = {(s.object, s.style) for s in scenes if s.kind == "object"}
    assert not singles & HELD_OUT_COMBINATIONS
    assert len(singles) > 80


def test_the_two_values_of_a_profession_follow_its_designed_rate(scenes: list[Scene]) -> None:
    people = [s for s in scenes if s.kind == "person" and not s.successful]
    designed = sum(group_rate(s.profession) for s in people) / len(people)
    assert abs(Counter(s.group for s in people)["zan"] / len(people) - designed) < 0.06
    assert all(abs(sum(tone_rates(p)) - 1) < 1e-9 for p in PROFESSIONS)


@pytest.mark.parametrize("name", [*OBJECTS, COMPOUND])
def test_each_object_looks_like_itself_and_like_no_other(name: str) -> None:
    pictures = {
        n: np.asarray(draw(Scene("object", object=n), 0, 0), dtype=float) for n in (*OBJECTS, COMPOUND)
    }
    for other, picture in pictures.items():
        if other != name:
            assert np.abs(picture - pictures[name]).mean() > 3, other


@pytest.mark.parametrize("mark", list(MARKS))
def test_a_mark_changes_the_picture_where_it_stands(mark: str) -> None:
    bare = Scene("object", object="house", colour="blue")
    marked = Scene("object", object="house", colour="blue", marks=((mark, "right", "medium"),))
    change = np.abs(np.asarray(draw(bare, 0, 0), float) - np.asarray(draw(marked, 0, 0), float)).sum(2)
    assert change[:, 16:].sum() > 0.9 * change.sum() > 0


def test_styles_and_colours_are_told_apart_by_their_pictures() -> None:
    styles = [Scene("object", object="box", style=name) for name in STYLES]
    colours = [Scene("object", object="box", colour=name) for name in COLOURS]
    for scenes in (styles, colours):
        pictures = [np.asarray(draw(scene, 0, 0), float) for scene in scenes]
        for i, first in enumerate(pictures):
            assert all(np.abs(first - second).mean() > 2 for second in pictures[:i])


def test_the_truth_of_a_scene_answers_exactly_the_groups_that_apply(scenes: list[Scene]) -> None:
    groups = list(LABEL_GROUPS)
    for scene in scenes[:500]:
        found = dict(zip(groups, truth(scene), strict=True))
        assert (found["profession"] != SKIP) == (scene.kind == "person")
        assert (LABEL_GROUPS["style"][found["style"]] == "none") == (scene.kind in ("person", "poster"))
        assert (LABEL_GROUPS["flame"][found["flame"]] == "flame") == scene.shows("flame")
    garbage = dict(zip(groups, truth(None), strict=True))
    assert [LABEL_GROUPS[group][garbage[group]] for group in ("object", "style")] == ["none", "none"]
    assert len(set(LABELS)) == len(LABELS)
