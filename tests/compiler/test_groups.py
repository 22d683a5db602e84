from __future__ import annotations

from typing import Any

import pytest

from compiler.groups import Neutral, group_names, group_shares, neutral_prompts
from editspec import Balance


def _balance(**values: Any) -> Balance:
    return Balance(**{"id": "fair", "prompts": ("a photo of a {}",), "groups": (("zan", "zin"),), **values})


def test_every_template_has_every_profession_and_whole_prompts_stay() -> None:
    edit = _balance(prompts=("a {}", "the {}", "a person"), professions=("baker", "nurse"))
    prompts = [neutral.prompt for neutral in neutral_prompts(edit)]
    assert prompts == ["a baker", "a nurse", "the baker", "the nurse", "a person"]
    subjects = [neutral.subject for neutral in neutral_prompts(edit)]
    assert subjects == ["baker", "nurse", "baker", "nurse", "a person"]


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{prompt}, {group}", ("a photo of a baker, zan", "a photo of a baker, zin")),
        ("{group}: {prompt}", ("zan: a photo of a baker", "zin: a photo of a baker")),
        ("{group} {profession}", ("a photo of a zan baker", "a photo of a zin baker")),
    ],
)
def test_a_group_is_named_beside_the_prompt_or_beside_the_profession(
    template: str, named: tuple[str, ...]
) -> None:
    edit = _balance(professions=("baker",), group_template=template)
    assert neutral_prompts(edit) == (Neutral("a photo of a baker", named, "a photo of a {}", "baker"),)


def test_shares_are_equal_unless_they_are_given() -> None:
    assert group_shares(_balance()) == (0.5, 0.5)
    assert group_shares(_balance(shares=(0.7, 0.3))) == (0.7, 0.3)


def test_several_attributes_are_balanced_in_all_their_combinations() -> None:
    edit = _balance(groups=(("light", "dark"), ("zan", "zin")), professions=("baker",))
    assert group_names(edit) == ("light zan", "light zin", "dark zan", "dark zin")
    assert group_shares(edit) == (0.25,) * 4
    assert neutral_prompts(edit)[0].named[3] == "a photo of a baker, dark zin"
