from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.guidance import Sega, SegaConcept, Sld, negative_prompt, sega, sega_guidance, sld, sld_guidance
from compiler.seeds import gaussian

SHAPE = (2, 3, 4, 5)


def _predictions(count: int, seed: int = 0) -> list[torch.Tensor]:
    return [gaussian(SHAPE, seed, number) for number in range(count)]


@settings(deadline=None, max_examples=20)
@given(threshold=st.sampled_from([0.0, 0.5, 0.8, 0.95]), scale=st.floats(0.5, 20), seed=st.integers(0, 50))
def test_semantic_guidance_keeps_the_tail_of_each_channel_and_turns_round(
    threshold: float, scale: float, seed: int
) -> None:
    uncond, concept = _predictions(2, seed)
    concepts = (SegaConcept(scale=scale, threshold=threshold, warmup=0),)
    toward, _ = sega_guidance(uncond, [concept], Sega(concepts=concepts), 0)
    away = (SegaConcept(scale=scale, threshold=threshold, warmup=0, away=True),)
    assert torch.equal(sega_guidance(uncond, [concept], Sega(concepts=away), 0)[0], -toward)
    kept = (toward != 0).float().mean(dim=(2, 3))
    assert torch.allclose(kept, torch.full_like(kept, 1 - threshold), atol=1.01 / 20)
    full = scale * (concept - uncond)
    assert torch.allclose(toward[toward != 0], full[toward != 0])


def test_semantic_guidance_waits_remembers_and_ends() -> None:
    uncond, concept = _predictions(2)
    settings_ = Sega(
        concepts=(SegaConcept(threshold=0.0, warmup=1, cooldown=2),), momentum_scale=0.5, momentum_beta=0.4
    )
    first, momentum = sega_guidance(uncond, [concept], settings_, 0)
    assert not first.any()
    assert torch.allclose(momentum, 0.6 * 5 * (concept - uncond))  # built up while it waits
    second, later = sega_guidance(uncond, [concept], settings_, 1, momentum)
    assert torch.allclose(second, 5 * (concept - uncond) + 0.5 * momentum)
    third, _ = sega_guidance(uncond, [concept], settings_, 2, later)
    assert torch.allclose(third, 0.5 * later)  # what is left is momentum


def test_weights_of_concepts_are_those_of_their_sum() -> None:
    uncond, one, other = _predictions(3)
    concepts = tuple(SegaConcept(threshold=0.0, warmup=0, weight=w) for w in (1.0, 0.25))
    both, _ = sega_guidance(uncond, torch.stack([one, other]), Sega(concepts=concepts), 0)
    assert torch.allclose(both, 5 * (one - uncond) + 0.25 * 5 * (other - uncond), atol=1e-6)
    with pytest.raises(ValueError, match="1 predictions for 2 concepts"):
        sega_guidance(uncond, [one], Sega(concepts=concepts), 0)


def test_safe_guidance_acts_where_the_text_is_nearer_to_the_concept_than_the_threshold() -> None:
    uncond, text, safety = _predictions(3)
    settings_ = Sld(scale=1e6, threshold=0.0, warmup=0, momentum_scale=0.0)
    guidance, _ = sld_guidance(uncond, text, safety, settings_, 0)
    acts = (text - safety) < 0
    assert torch.equal(guidance[~acts], torch.zeros_like(guidance[~acts]))
    assert torch.allclose(guidance[acts], (safety - uncond)[acts])
    assert not sld_guidance(uncond, text, safety, Sld(warmup=3), 2)[0].any()


@settings(deadline=None, max_examples=20)
@given(w=st.floats(1, 15))
def test_predictions_are_plain_guidance_where_nothing_is_added(w: float) -> None:
    uncond, text = _predictions(2)
    plain = uncond + w * (text - uncond)
    nothing = torch.zeros_like(text)
    for prediction in (
        sega(uncond, text, nothing, w),
        sld(uncond, text, nothing, w),
        negative_prompt(uncond, text, w),
    ):
        assert torch.allclose(prediction, plain, atol=1e-4)
