from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.anchors import AnchorPrompt, anchor_prompts, problems
from editspec import Ablate
from editspec.errors import InputError

CAT = Ablate(id="cat", concept="grumpy cat", anchor="cat", aliases=("tardar sauce",), templates=("a {}",))
HERE = Path()


def test_templates_take_the_anchor_and_in_its_place_the_concept_and_its_aliases() -> None:
    assert anchor_prompts(CAT, HERE) == (AnchorPrompt("a cat", ("a grumpy cat", "a tardar sauce")),)


def test_a_listed_prompt_takes_the_concept_where_the_anchor_stands() -> None:
    edit = Ablate(id="x", concept="star", anchor="moon", prompts=("a Moon over a house", "one {} alone"))
    assert anchor_prompts(edit, HERE) == (
        AnchorPrompt("a Moon over a house", ("a star over a house",)),
        AnchorPrompt("one moon alone", ("one star alone",)),
    )


def test_only_whole_words_are_the_anchor() -> None:
    edit = Ablate(id="x", concept="grumpy cat", anchor="cat", prompts=("a cattle ranch",))
    ((key, message),) = problems(edit, HERE)
    assert key == "prompts/0"
    assert "neither {} nor the anchor 'cat'" in message


def test_a_style_is_added_where_the_prompt_has_no_place_for_it() -> None:
    edit = Ablate(id="x", concept="van gogh", anchor="painting", kind="style", prompts=("a boat at sea",))
    assert anchor_prompts(edit, HERE) == (
        AnchorPrompt("a boat at sea", ("a boat at sea in van gogh style",)),
    )


def test_a_language_models_list_is_read_without_numbers_bullets_and_quotes(tmp_path: Path) -> None:
    text = '# prompts\n1. "a cat in snow"\n2) a cat asleep\n\n- a {} by night\n• a cat asleep\n'
    (tmp_path / "prompts.txt").write_text(text, "utf-8")
    edit = Ablate(id="x", concept="grumpy cat", anchor="cat", prompts_file="prompts.txt")
    assert [prompt.anchor for prompt in anchor_prompts(edit, tmp_path)] == [
        "a cat in snow",
        "a cat asleep",
        "a cat by night",
    ]


@pytest.mark.parametrize(("text", "why"), [("", "no prompt"), ("a {x} cat", "brace"), ("a dog", "neither")])
def test_a_useless_file_is_refused_with_the_reason(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "prompts.txt").write_text(text, "utf-8")
    edit = Ablate(id="x", concept="grumpy cat", anchor="cat", prompts_file="prompts.txt")
    assert why in problems(edit, tmp_path)[0][1]
    with pytest.raises(InputError, match=why):
        anchor_prompts(edit, tmp_path)


@given(st.sampled_from(["a cat", "the cat on a cat", "{} and a dog", "CAT", "big  cat!"]))
def test_student_prompts_name_the_concept_and_anchor_prompts_never_do(prompt: str) -> None:
    edit = Ablate(id="x", concept="lynx", anchor="cat", prompts=(prompt,))
    (found,) = anchor_prompts(edit, HERE)
    assert "lynx" not in found.anchor
    assert "{}" not in found.anchor
    assert all("lynx" in student for student in found.students)
