from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.effects import Along, Branch, Effect, effect_of
from compiler.guidance import sega, sega_guidance, sega_of, sld, sld_guidance, sld_of
from compiler.sampling import Step, classifier_free_guidance
from compiler.seeds import gaussian
from editspec import Direction, Guide, Guided

CRACK, MOON = Guided(concept="crack"), Guided(concept="moon", weight=2.0)
SEGA = Guide(
    id="a", away_from=(CRACK,), toward=(MOON,), scale=5.0, warmup=1, threshold=0.8, momentum_scale=0.1,
    momentum_beta=0.4,
)  # fmt: skip
SLD = Guide(
    id="b", method="sld", away_from=(CRACK, Guided(concept="spill")), scale=20.0, warmup=1, threshold=0.5,
    momentum_scale=0.3, momentum_beta=0.4,
)  # fmt: skip
NEGATIVE = Guide(id="c", method="negative-prompt", away_from=(CRACK,))
W = 5.0


def _steps(effect: Effect) -> list[Step]:
    names = ("uncond", "cond", *effect.prompts)
    drawn = [[gaussian((2, 4, 8, 8), 3, name, index) for name in names] for index in range(3)]
    return [
        Step(index, 900.0 - index, uncond, uncond, cond, tuple(further))
        for index, (uncond, cond, *further) in enumerate(drawn)
    ]


def _plain(effect: Effect, branch: Branch, step: Step, guidance: torch.Tensor, w: float) -> torch.Tensor:
    text, empty = effect.changes(branch, w)
    return classifier_free_guidance(step.uncond + empty * guidance, step.cond + text * guidance, w)


@pytest.mark.parametrize("branch", ["both", "text"])
def test_changed_branches_in_plain_guidance_are_semantic_guidance(branch: Branch) -> None:
    effect = effect_of(SEGA)
    guide, momentum = effect.begin(), None
    for step in _steps(effect):
        g, momentum = sega_guidance(step.uncond, step.further, sega_of(SEGA), step.index, momentum)
        expected = sega(step.uncond, step.cond, g, W)
        torch.testing.assert_close(_plain(effect, branch, step, guide(step), W), expected)
    assert g.any()


@pytest.mark.parametrize("branch", ["both", "text", "opposite"])
def test_changed_branches_in_plain_guidance_are_safe_latent_diffusion(branch: Branch) -> None:
    effect = effect_of(SLD)
    assert effect.prompts == ("crack, spill",)
    guide, momentum = effect.begin(), None
    for step in _steps(effect):
        g, momentum = sld_guidance(step.uncond, step.cond, step.further[0], sld_of(SLD), step.index, momentum)
        expected = sld(step.uncond, step.cond, g, W)
        torch.testing.assert_close(_plain(effect, branch, step, guide(step), W), expected)
    assert g.any()


@pytest.mark.parametrize("branch", ["both", "text", "empty", "opposite"])
def test_changed_branches_in_plain_guidance_are_a_negative_prompt(branch: Branch) -> None:
    effect = effect_of(NEGATIVE)
    (step, *_) = _steps(effect)
    expected = classifier_free_guidance(step.further[0], step.cond, W)
    torch.testing.assert_close(_plain(effect, branch, step, effect.begin()(step), W), expected)


@pytest.mark.parametrize("edit", [SEGA, SLD, NEGATIVE], ids=lambda edit: edit.method)
def test_in_its_own_branch_an_effect_does_not_depend_on_the_guidance_scale(edit: Guide) -> None:
    effect = effect_of(edit)
    assert effect.changes(effect.branch, 3.0) == effect.changes(effect.branch, 7.5)
    scaled: set[Branch] = {"both", "text"}
    others = scaled - {effect.branch}
    assert all(effect.changes(branch, 3.0) != effect.changes(branch, 7.5) for branch in others)


@given(w=st.floats(3.0, 7.5))
def test_opposite_halves_lead_nearly_as_far_at_every_usual_guidance_scale(w: float) -> None:
    for edit, exact in ((SLD, -w), (NEGATIVE, -(w - 1.0))):
        text, empty = effect_of(edit).changes("opposite", 4.5)
        assert text == -empty
        assert (w * text + (1.0 - w) * empty) / exact == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ValueError, match="depend on the guidance scale"):
        effect_of(SEGA).changes("opposite", w)


def test_a_direction_away_is_a_negative_prompt_in_the_text_branch() -> None:
    effect = Along((Direction(prompt="a scene", negative_prompt="spill"),), W)
    (step, *_) = _steps(effect)
    expected = classifier_free_guidance(step.further[0], step.cond, W)
    torch.testing.assert_close(_plain(effect, "text", step, effect.begin()(step), W), expected)


def test_directions_between_prompts_add_up_with_weights_and_strength() -> None:
    there = Direction(prompt="red", base_prompt="blue", weight=2.0)
    effect = Along((there, Direction(prompt="small", base_prompt="blue")), W, strength=0.5)
    assert effect.prompts == ("red", "blue", "small")
    (step, *_) = _steps(effect)
    red, blue, small = step.further
    torch.testing.assert_close(effect.begin()(step), (red - blue) + 0.5 * (small - blue))


def test_each_run_of_an_effect_has_a_memory_of_its_own() -> None:
    effect = effect_of(SEGA)
    steps = _steps(effect)
    first, second = effect.begin(), effect.begin()
    for step in steps[:2]:
        first(step)
    torch.testing.assert_close(second(steps[0]), effect.begin()(steps[0]))
    assert not torch.equal(first(steps[1]), second(steps[1]))


@pytest.mark.parametrize(
    ("edit", "other"),
    [
        (SEGA, {"scale": 6.0}),
        (SEGA, {"cooldown": 3}),
        (SEGA, {"toward": (CRACK,)}),
        (SLD, {"threshold": 0.1}),
        (NEGATIVE, {"away_from": (MOON,)}),
    ],
)
def test_what_decides_the_guidance_is_among_the_facts(edit: Guide, other: dict[str, Any]) -> None:
    from dataclasses import replace

    assert effect_of(edit).facts() != effect_of(replace(edit, **other)).facts()
