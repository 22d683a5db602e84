from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.baselines import Baseline, ClassifierFreeGuidance, sample_with
from compiler.baselines.negative_prompt import NegativePrompt
from compiler.baselines.sega import SemanticGuidance
from compiler.baselines.sld import SafeLatentDiffusion
from compiler.checkpoint import Checkpoint
from compiler.conditioning import encode, encode_unconditional
from compiler.guidance import Sega, SegaConcept, Sld
from compiler.sampling import load_scheduler, sample
from compiler.seeds import gaussian, generator
from compiler.text import TextEncoder
from compiler.unet import build_unet
from editspec import parse_spec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PROMPTS = ("a star", "a photo of a red moon")
STEPS = 8
GUIDANCE_SCALE = 4.0


def _noise() -> torch.Tensor:
    return torch.stack([gaussian((4, 8, 8), 3, prompt) for prompt in PROMPTS])


def _ours(folder: Path, baseline: Baseline) -> torch.Tensor:
    checkpoint = Checkpoint.open(folder)
    text = TextEncoder.from_checkpoint(checkpoint)
    return sample_with(
        baseline,
        build_unet(checkpoint),
        load_scheduler(checkpoint),
        lambda prompts: encode(text, prompts, checkpoint),
        _noise(),
        encode_unconditional(text, checkpoint),
        encode(text, PROMPTS, checkpoint),
        steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generators=[generator(3, prompt, "scheduler") for prompt in PROMPTS],
    ).latents


def _theirs(folder: Path, pipeline: Any, **options: Any) -> torch.Tensor:
    loaded = pipeline.from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    found: list[torch.Tensor] = []
    loaded(
        list(PROMPTS),
        latents=_noise(),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        callback=lambda step, timestep, latents: found.append(latents.clone()),
        **options,
    )
    return found[-1]


CONCEPTS = {
    "one concept": (SegaConcept(away=True, scale=7, warmup=2, threshold=0.85),),
    "two, of which one warms up longer and one ends": (
        SegaConcept(scale=5, warmup=1, threshold=0.9, weight=0.6, cooldown=6),
        SegaConcept(scale=9, away=True, warmup=4, threshold=0.5, weight=1.3),
    ),
}


@pytest.mark.parametrize("concepts", CONCEPTS.values(), ids=CONCEPTS)
def test_semantic_guidance_gives_the_latents_of_the_published_pipeline(
    tiny_checkpoint: Path, concepts: tuple[SegaConcept, ...]
) -> None:
    from diffusers import SemanticStableDiffusionPipeline

    texts = ("a flame", "spill")[: len(concepts)]
    ours = _ours(tiny_checkpoint, SemanticGuidance(texts, Sega(concepts=concepts, momentum_scale=0.4)))
    theirs = _theirs(
        tiny_checkpoint,
        SemanticStableDiffusionPipeline,
        output_type="latent",
        editing_prompt=list(texts),
        reverse_editing_direction=[concept.away for concept in concepts],
        edit_guidance_scale=[concept.scale for concept in concepts],
        edit_warmup_steps=[concept.warmup for concept in concepts],
        edit_cooldown_steps=[STEPS if c.cooldown is None else c.cooldown for c in concepts],
        edit_threshold=[concept.threshold for concept in concepts],
        edit_weights=[concept.weight for concept in concepts],
        edit_momentum_scale=0.4,
    )
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - _ours(tiny_checkpoint, ClassifierFreeGuidance())).abs().max() > 1e-2


@pytest.mark.parametrize("preset", ["WEAK", "MEDIUM", "STRONG", "MAX"])
def test_safe_latent_diffusion_gives_the_latents_of_the_published_pipeline(
    tiny_checkpoint: Path, preset: str
) -> None:
    from diffusers import StableDiffusionPipelineSafe
    from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig

    options = {**getattr(SafetyConfig, preset)}
    options["sld_warmup_steps"] = min(options["sld_warmup_steps"], 3)
    settings = Sld(
        scale=options["sld_guidance_scale"],
        threshold=options["sld_threshold"],
        warmup=options["sld_warmup_steps"],
        momentum_scale=options["sld_momentum_scale"],
        momentum_beta=options["sld_mom_beta"],
    )
    ours = _ours(tiny_checkpoint, SafeLatentDiffusion("a flame", settings))

    class WithConcept(StableDiffusionPipelineSafe):  # type: ignore[misc]
        """Its safety concept is a setting of the loaded pipeline, long for this tokenizer by default."""

        @classmethod
        def from_pretrained(cls, *arguments: Any, **named: Any) -> Any:
            loaded = super().from_pretrained(*arguments, **named)
            loaded.safety_concept = "a flame"
            return loaded

    theirs = _theirs(tiny_checkpoint, WithConcept, output_type="np", **options)
    assert (ours - theirs).abs().max() <= 1e-4
    assert (ours - _ours(tiny_checkpoint, ClassifierFreeGuidance())).abs().max() > 1e-3


def test_negative_prompt_gives_the_latents_of_the_stock_pipeline(tiny_checkpoint: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        list(PROMPTS),
        negative_prompt=["a flame"] * 2,
        latents=_noise(),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        output_type="latent",
    ).images
    assert (_ours(tiny_checkpoint, NegativePrompt("a flame")) - theirs).abs().max() <= 1e-4


def test_an_original_that_adds_nothing_is_plain_sampling(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    text = TextEncoder.from_checkpoint(checkpoint)
    plain = sample(
        build_unet(checkpoint),
        load_scheduler(checkpoint),
        _noise(),
        encode_unconditional(text, checkpoint),
        encode(text, PROMPTS, checkpoint),
        steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generators=[generator(3, prompt, "scheduler") for prompt in PROMPTS],
    )
    assert torch.equal(plain.latents, _ours(tiny_checkpoint, ClassifierFreeGuidance()))


def test_originals_are_made_from_the_edits_that_bake_them() -> None:
    edits: list[dict[str, object]] = [
        {
            "id": "a",
            "edit": "guide",
            "method": "sega",
            "away_from": ["flame"],
            "toward": ["moon"],
            "scale": 7,
        },
        {"id": "b", "edit": "guide", "method": "sld", "away_from": ["flame", "spill"], "preset": "strong"},
    ]
    document = {"editspec": 1, "name": "n", "base": {"path": "miniature"}, "edits": edits}
    sega, sld = parse_spec(json.dumps(document)).edits
    semantic = SemanticGuidance.of(sega)  # type: ignore[arg-type]
    assert semantic.prompts == ("flame", "moon")
    assert [concept.away for concept in semantic.settings.concepts] == [True, False]
    assert {concept.scale for concept in semantic.settings.concepts} == {7}
    safe = SafeLatentDiffusion.of(sld)  # type: ignore[arg-type]
    assert safe.prompts == ("flame, spill",)
    assert (safe.settings.scale, safe.settings.warmup, safe.settings.momentum_beta) == (2000, 7, 0.7)
