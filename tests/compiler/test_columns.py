"""Each position of the concept's prompt goes to the position of the same role in the anchor's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler.checkpoint import Checkpoint
from compiler.columns import ColumnSet, Subject, align
from compiler.tail import stops
from compiler.text import TextEncoder
from editspec.errors import InputError


@pytest.fixture(scope="module")
def text(tiny_checkpoint: Path) -> TextEncoder:
    return TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint))


def test_a_subject_knows_its_tokens_in_the_template(text: TextEncoder) -> None:
    assert Subject.of(text, "a {} drawing", "red star") == Subject("a red star drawing", 2, 4, 6)
    assert Subject.of(text, "{}", "star") == Subject("star", 1, 2, 3)
    assert Subject.of(text, "a picture of a {}", "picture") == Subject("a picture of a picture", 5, 6, 7)
    assert Subject.of(text, "a big red star", "star") == Subject("a big red star", 4, 5, 6)


def test_an_empty_subject_leaves_the_template_without_it(text: TextEncoder) -> None:
    assert Subject.of(text, "a photo of a {}", "") == Subject("a photo", 3, 3, 4)
    assert Subject.of(text, "a {} drawing", "") == Subject("a drawing", 3, 3, 4)
    assert Subject.of(text, "{}", "") == Subject("", 1, 1, 2)


def test_a_prompt_beyond_the_window_is_refused(text: TextEncoder) -> None:
    with pytest.raises(InputError, match=r"has 21 tokens, the text encoder's window is 16"):
        Subject.of(text, "a photo of {}", " ".join(["star"] * 16))


def test_equal_lengths_map_one_to_one(text: TextEncoder) -> None:
    star, moon = (Subject.of(text, "a {} drawing", name) for name in ("star", "moon"))
    positions = [2, 3, 4, 5, 15]
    assert align(star, moon, positions, 16) == [("a moon drawing", p) for p in positions]


def test_surplus_concept_tokens_go_to_the_first_token_of_the_anchor(text: TextEncoder) -> None:
    concept, anchor = (
        Subject.of(text, "a {} drawing", "big red star"),
        Subject.of(text, "a {} drawing", "moon"),
    )
    #                        big red star  drawing EOS  padding
    places = align(concept, anchor, [2, 3, 4, 5, 6, 7, 15], 16)
    assert [place[1] for place in places] == [2, 2, 2, 3, 4, 7, 15]


def test_a_longer_anchor_is_met_at_its_end(text: TextEncoder) -> None:
    concept, anchor = (
        Subject.of(text, "{} style", "dotted"),
        Subject.of(text, "{} style", "plain white sketch"),
    )
    #              dotted -> sketch, style, EOS, padding that is not yet padding there, padding
    places = align(concept, anchor, [1, 2, 3, 4, 15], 16)
    assert [place[1] for place in places] == [3, 4, 5, 6, 15]


def test_without_an_anchor_words_become_the_empty_prompts_padding(text: TextEncoder) -> None:
    concept, nothing = Subject.of(text, "a {} drawing", "star"), Subject.of(text, "a {} drawing", "")
    assert align(concept, nothing, [2, 3, 4, 5], 16) == [
        ("", 2), ("a drawing", 2), ("a drawing", 3), ("a drawing", 5),
    ]  # fmt: skip
    alone, empty = Subject.of(text, "{}", "star"), Subject.of(text, "{}", "")
    assert align(alone, empty, [1, 2, 3, 15], 16) == [("", 1), ("", 1), ("", 3), ("", 15)]


def test_an_anchor_that_fills_the_window_has_no_padding_to_offer(text: TextEncoder) -> None:
    full = Subject.of(text, "{}", " ".join(["moon"] * 14))
    assert full.length == 16
    assert align(Subject.of(text, "{}", "star"), full, [3, 15], 16) == [(full.prompt, 15), (full.prompt, 15)]


def test_columns_hold_the_prompts_own_embeddings(text: TextEncoder) -> None:
    gathered = ColumnSet(text)
    gathered.move("a {}", "star", "moon", weight=0.5)
    gathered.preserve("a ring")
    columns = gathered.build()
    positions = [2, 3, *stops(4, text.window)]
    star, moon = text.encode(["a star", "a moon"]).double()
    torch.testing.assert_close(columns.edited.T, star[positions], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(columns.anchors.T, moon[positions], atol=2e-6, rtol=1e-5)
    assert columns.weights.tolist() == [0.5] * len(positions)
    assert columns.exact_padding
    # empty prompt whole (BOS is one of it), the shared "a", the anchor, "ring"
    assert columns.preserved.shape[1] == text.window + 1 + 2 * len(positions)
    weights = sorted(columns.preserved_weights.tolist())
    assert weights[: len(positions)] == [0.5] * len(positions)  # the anchor's
    assert weights[-2:] == [2.0, 3.0]  # "a" stands before star, moon and ring, BOS before nothing too


def test_equal_contexts_are_one_column(text: TextEncoder) -> None:
    once, twice = ColumnSet(text), ColumnSet(text)
    for gathered, times in ((once, 1), (twice, 3)):
        for _ in range(times):
            gathered.move("a {}", "star", "moon")
            gathered.preserve("a ring")
    assert once.build().edited.shape == twice.build().edited.shape
    assert once.build().preserved.shape == twice.build().preserved.shape
    torch.testing.assert_close(twice.build().weights, 3 * once.build().weights)


def test_what_is_moved_is_not_preserved(text: TextEncoder) -> None:
    gathered = ColumnSet(text)
    gathered.preserve("star house")  # its first word is the concept, in the same context
    gathered.move("{}", "star", "")
    columns = gathered.build()
    star = text.encode(["star"])[0, 1].double()
    assert float((columns.preserved - star[:, None]).norm(dim=0).min()) > 1e-3


def test_scale_goes_part_of_the_way(text: TextEncoder) -> None:
    whole, half = ColumnSet(text), ColumnSet(text)
    whole.move("a {}", "star", "moon")
    half.move("a {}", "star", "moon", scale=0.5)
    a, b = whole.build(), half.build()
    torch.testing.assert_close(b.anchors - b.edited, 0.5 * (a.anchors - a.edited))
