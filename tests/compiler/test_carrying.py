from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compiler.carrying import opening_words, words_of
from editspec import Direction

SAID = ("a", "house", "with", "flame", "fire", "spill")
prompts = st.lists(st.lists(st.sampled_from(SAID), max_size=5).map(" ".join))


@given(away=prompts, prompts=prompts, kept=prompts)
def test_a_word_opens_a_gate_if_it_is_led_away_from_and_named_and_nothing_kept_has_it(
    away: list[str], prompts: list[str], kept: list[str]
) -> None:
    direction = Direction(prompt="a house", negative_prompt=" ".join(away))
    opening = opening_words(direction, prompts, kept)
    for word in {*SAID[2:]}:
        named = word in words_of(" ".join(away)) and word in words_of(" ".join(prompts))
        assert (word in opening) == (named and word not in words_of(" ".join(kept)))
    assert not {"a", "house"} & set(opening)  # the direction's own prompt has them
    assert len(set(opening)) == len(opening)


def test_words_are_told_apart_as_prompts_write_them() -> None:
    assert words_of("A house, a Flame; fire-place") == ("a", "house", "flame", "fire", "place")
