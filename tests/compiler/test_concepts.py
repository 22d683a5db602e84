"""Neighbours are words, nearest first, and never what is being erased."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import compiler.concepts
from compiler.checkpoint import Checkpoint
from compiler.concepts import Neighbourhood, neighbours, untrained, vocabulary
from compiler.text import TextEncoder


@pytest.fixture(scope="module")
def text(tiny_checkpoint: Path) -> TextEncoder:
    return TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint))


def test_the_vocabulary_holds_whole_words_only(text: TextEncoder) -> None:
    words = vocabulary(text)
    assert {"star", "sixstar", "moon", "flame"} <= set(words)
    assert all(word.isalpha() and len(word) > 2 for word in words)
    assert not {"the", "with", "without", "and"} & set(words)
    assert [len(ids) for ids in text.token_ids(words)] == [3] * len(words)


def test_neighbours_are_ranked_by_the_cosine_of_their_centred_final_embeddings(text: TextEncoder) -> None:
    words = ["sixstar", "house", "tree", "ring", "flame", "boat"]
    found = neighbours(text, "star", 5, exclude=["moon"], words=words)
    assert len(found) == 5
    assert [cosine for _, cosine in found] == sorted((cosine for _, cosine in found), reverse=True)
    finals = {w: row[-1] for w, row in zip(words, text.encode_tokens([f"a {w}" for w in words]), strict=True)}
    shared = torch.stack(list(finals.values())).mean(0)
    own = text.encode_tokens(["a star"])[0][-1] - shared
    cosines = [float(torch.cosine_similarity(own, finals[word] - shared, dim=0)) for word, _ in found]
    assert cosines == pytest.approx([cosine for _, cosine in found], abs=1e-4)


def test_the_concept_its_aliases_and_their_plurals_are_left_out(text: TextEncoder) -> None:
    words = ["star", "stars", "Moon", "crosses", "ring", "tree"]
    found = neighbours(text, "star", 9, exclude=["moon", "cross"], words=[word.lower() for word in words])
    assert {word for word, _ in found} == {"ring", "tree"}


def test_a_concept_of_several_words_keeps_its_single_words_as_neighbours(text: TextEncoder) -> None:
    found = neighbours(text, "red star", 3, words=["star", "red", "house"])
    assert {word for word, _ in found} == {"star", "red", "house"}


def test_a_large_vocabulary_is_cut_to_those_with_near_input_embeddings(
    text: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler.concepts, "_SHORTLIST", 16)
    hood = Neighbourhood(text)
    assert len(hood.words) > 16
    found = hood.neighbours("star", 2)
    assert len(found) == 2
    assert "star" not in dict(found)
    assert hood.neighbours("star", 2) == found


def test_none_wanted_or_none_there_gives_none(text: TextEncoder) -> None:
    assert neighbours(text, "star", 0) == []
    assert neighbours(text, "star", 3, words=["star"]) == []


def test_words_that_training_never_met_are_no_neighbours(tiny_checkpoint: Path) -> None:
    text = TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint))
    assert untrained(text, vocabulary(text)) == frozenset(), "a random table tells nothing"
    with torch.no_grad():
        table = text.parts[-1].input_embeddings
        kept = text.tokenizer.convert_tokens_to_ids(["ring</w>", "tree</w>"])
        small = table[kept].clone()
        table *= 10 * 0.02 / table.std()
        table[kept] = small * (0.02 / small.std())
    assert untrained(text, vocabulary(text)) == {"ring", "tree"}
    words = ["ring", "tree", "house", "boat", "moon", "heart"]
    found = neighbours(text, "star", 9, words=words)
    assert {word for word, _ in found} <= {"house", "boat", "moon", "heart"}


def test_an_answer_does_not_depend_on_what_was_asked_before(text: TextEncoder) -> None:
    fresh = Neighbourhood(text).neighbours("star", 5)
    hood = Neighbourhood(text)
    hood.neighbours("moon boat", 9)
    assert hood.neighbours("star", 5) == fresh
