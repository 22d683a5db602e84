"""What a spec's closed-form erasures gather: textbook columns without templates, sentences with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler import erasure
from compiler.checkpoint import Checkpoint
from compiler.columns import ColumnSet
from compiler.erasure import gather
from compiler.interference import beside
from compiler.text import TextEncoder
from editspec import EditSpec, Erase, parse_spec


@pytest.fixture(scope="module")
def text(tiny_checkpoint: Path) -> TextEncoder:
    return TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint))


def spec_of(*edits: dict[str, Any], **more: Any) -> EditSpec:
    numbered = [
        {"id": f"edit-{number}", "edit": "erase", "method": "closed-form"} | edit
        for number, edit in enumerate(edits)
    ]
    return parse_spec(
        json.dumps({"editspec": 1, "name": "test", "base": {"path": "tiny"}, "edits": numbered} | more)
    )


def erasures_of(spec: EditSpec) -> list[Erase]:
    return [edit for edit in spec.edits if isinstance(edit, Erase)]


def test_without_templates_the_columns_are_the_textbooks(text: TextEncoder) -> None:
    spec = spec_of({"concept": "star", "anchor": "moon", "templates": []}, preserve={"concepts": ["ring"]})
    found = gather(text, erasures_of(spec), spec)
    expected = ColumnSet(text)
    expected.move("{}", "star", "moon")
    expected.preserve("ring")
    columns = expected.build()
    torch.testing.assert_close(found.edited, columns.edited)
    torch.testing.assert_close(found.anchors, columns.anchors)
    torch.testing.assert_close(found.preserved, columns.preserved)
    torch.testing.assert_close(found.weights, columns.weights)
    torch.testing.assert_close(found.preserved_weights, columns.preserved_weights)


def test_an_erased_name_weighs_one_however_many_its_prompts(text: TextEncoder) -> None:
    spec = spec_of({"concept": "star", "aliases": ["sixstar"], "anchor": "moon"})
    columns = gather(text, erasures_of(spec), spec)
    # The concept's own tokens, EOS and at most four stops of the padding, each with a share of 1, two names.
    assert 2 * 2 <= float(columns.weights.sum()) <= 2 * 12
    assert columns.edited.shape[1] > 100


def test_other_words_are_kept_in_sentences(text: TextEncoder) -> None:
    spec = spec_of({"concept": "star", "anchor": "moon"})
    columns = gather(text, erasures_of(spec), spec)
    assert columns.preserved.shape[1] > 2 * columns.edited.shape[1]
    # The first word's context "BOS a <word>" is kept for each word of the pool.
    house = text.encode(["a house"])[0, 2].double()
    assert float((columns.preserved - house[:, None]).norm(dim=0).min()) < 1e-4


@pytest.mark.parametrize("templates", [None, []], ids=["sentences", "alone"])
def test_the_first_word_of_a_compound_stays_where_it_is_preserved_by_name(
    text: TextEncoder, templates: list[str] | None
) -> None:
    edit = {"concept": "red star", "anchor": "moon"} | ({} if templates is None else {"templates": templates})

    def moved(*preserved: str) -> tuple[bool, bool]:
        """Whether some column moves "red", and "star" of "red star"."""
        spec = spec_of(edit, preserve={"concepts": list(preserved)})
        states = gather(text, erasures_of(spec), spec).edited.T
        prompt = text.encode(["red star"])[0].double()
        red, star = (bool((states - prompt[at]).norm(dim=1).min() < 1e-4) for at in (1, 2))
        return red, star

    assert moved("star", "house") == (True, True)
    assert moved("red", "star") == (False, True)


def test_a_name_beside_what_is_preserved_goes_to_the_anchor_beside_it(text: TextEncoder) -> None:
    spec = spec_of({"concept": "star", "anchor": "moon"}, preserve={"concepts": ["house", "ring"]})
    columns = gather(text, erasures_of(spec), spec)
    source, goal = text.encode(["a star beside a house", "a moon beside a house"]).double()
    for position in (2, 5, 6):  # "star", "house" that has read it, EOS
        distance, at = (columns.edited.T - source[position]).norm(dim=1).min(dim=0)
        assert distance < 1e-4
        torch.testing.assert_close(columns.anchors.T[at], goal[position], atol=1e-4, rtol=1e-4)


def test_erased_words_are_neither_kept_nor_part_of_sentences(
    text: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []
    keep = ColumnSet.preserve

    def spy(self: ColumnSet, prompt: str, *, weight: float = 1.0) -> None:
        prompts.append(prompt)
        keep(self, prompt, weight=weight)

    monkeypatch.setattr(ColumnSet, "preserve", spy)
    other = {"concept": "flame", "aliases": ["fire"], "method": "esd", "kind": "content"}
    spec = spec_of({"concept": "star", "anchor": "moon"}, other, preserve={"auto": 4})
    gather(text, erasures_of(spec)[:1], spec)
    others = set(beside(erasures_of(spec)[:1], spec))  # what the other pass made of "flame" is kept as it is
    kept = {word for prompt in prompts if prompt not in others for word in prompt.split()}
    assert len(prompts) > 100
    assert not kept & {"star", "flame", "fire"}
    assert others <= set(prompts)
    assert not any("star" in prompt for prompt in others)


def test_preserved_concepts_and_neighbours_are_kept_in_templates_too(text: TextEncoder) -> None:
    plain = spec_of({"concept": "star"})
    more = spec_of({"concept": "star", "preserve": ["ring"]}, preserve={"concepts": ["tree"]})
    kept = [
        gather(text, erasures_of(spec), spec, mined).preserved.shape[1]
        for spec, mined in ((plain, {}), (more, {}), (more, {"edit-0": ["moon", "heart"]}))
    ]
    assert kept[0] < kept[1] < kept[2]


def test_the_same_seed_gathers_the_same_columns_and_another_does_not(text: TextEncoder) -> None:
    found = [
        gather(text, erasures_of(spec), spec).edited
        for spec in (spec_of({"concept": "star"}, seed=seed) for seed in (1, 1, 2))
    ]
    assert torch.equal(found[0], found[1])
    assert found[0].shape != found[2].shape or not torch.equal(found[0], found[2])


def test_null_space_mode_keeps_what_is_named_and_no_pool(text: TextEncoder) -> None:
    edits = [{"concept": "star", "preserve_mode": mode} for mode in ("columns", "null-space")]
    counts = []
    for edit in edits:
        spec = spec_of(edit)
        counts.append(gather(text, erasures_of(spec), spec).preserved.shape[1])
    assert counts[1] < counts[0]


def test_long_names_take_part_in_fewer_sentences_but_never_leave_the_window(
    text: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "POOL", 8)
    spec = spec_of(
        {"concept": "big red star drawing shape", "anchor": "small blue moon", "templates": ["a {}"]}
    )
    columns = gather(text, erasures_of(spec), spec)
    assert columns.edited.shape[1] > 8
