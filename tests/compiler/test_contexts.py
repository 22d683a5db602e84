"""Contexts are sentences of given words with one place for the concept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.contexts import PATTERNS, contexts, draws, without
from editspec.templates import TEMPLATES, Kind

KINDS = st.sampled_from(sorted(PATTERNS))


@given(KINDS, st.integers(0, 60), st.integers(0, 2**63 - 1))
def test_each_has_one_place_and_only_given_words(kind: Kind, count: int, seed: int) -> None:
    made = contexts(kind, ["fish", "boat"], count, seed)
    assert len(made) == count
    glue = {"a", "the", "with", "on", "in", "and", "by", "style", "{}"}
    for template in made:
        assert template.count("{}") == 1
        assert set(template.split()) <= glue | {"fish", "boat"}


def test_the_seed_decides_and_every_pattern_gets_its_turn() -> None:
    words = [f"word{number}" for number in range(50)]
    assert contexts("object", words, 30, 5) == contexts("object", words, 30, 5)
    assert contexts("object", words, 30, 5) != contexts("object", words, 30, 6)
    shapes = {len(template.split()) for template in contexts("object", words, len(PATTERNS["object"]), 5)}
    assert len(shapes) > 2
    assert set(draws(["a", "b", "c"], 200, 1)) == {"a", "b", "c"}


def test_random_words_are_the_same_ones_for_ever() -> None:
    assert draws(["a", "b", "c", "d"], 8, 7) == ["b", "a", "c", "a", "c", "b", "a", "c"]


def test_no_words_make_no_contexts() -> None:
    assert contexts("object", [], 5, 0) == []


@pytest.mark.parametrize(
    ("template", "left"),
    [
        ("{}", ""),
        ("a {}", ""),
        ("a photo of a {}", "a photo"),
        ("a {} drawing", "a drawing"),
        ("a picture in {} style", "a picture"),
        ("{} style", ""),
        ("a scene with {}", "a scene"),
        ("a fish and a {}", "a fish"),
        ("night by {}", "night"),
        ("a {} on paper", "a on paper"),
    ],
)
def test_without_its_concept_a_prompt_keeps_no_dangling_phrase(template: str, left: str) -> None:
    assert without(template) == left


def test_without_works_on_all_stock_templates() -> None:
    for templates in TEMPLATES.values():
        for template in templates:
            rest = without(template)
            assert "{}" not in rest
            assert not rest.endswith((" with", " of", " in", " a"))
