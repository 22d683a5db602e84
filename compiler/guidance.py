"""What is added to classifier-free guidance: semantic guidance, safe latent diffusion and negative prompts.

Pure functions of predictions and the state of one step. The runtime originals sample with them, and `guide`
bakes them into weights, so both are the same mathematics. Predictions are (n, channels, h, w), noise or v;
those for k concepts (k, n, channels, h, w). Momentum is what a function returns beside its guidance: None
before the first step, then whatever the step before gave. Steps count from 0 in scheduler steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from editspec import Guide


@dataclass(frozen=True, kw_only=True)
class SegaConcept:
    """One edit direction of semantic guidance; `away` turns it round. `cooldown` None: it never ends."""

    scale: float = 5.0
    away: bool = False
    weight: float = 1.0
    threshold: float = 0.9
    warmup: int = 10
    cooldown: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sega:
    """Semantic guidance (Brack et al. 2023): its concepts in order, s_m and beta_m of the momentum."""

    concepts: tuple[SegaConcept, ...]
    momentum_scale: float = 0.1
    momentum_beta: float = 0.4


@dataclass(frozen=True, kw_only=True)
class Sld:
    """Safe latent diffusion (Schramowski et al. 2023): s_S, lambda, warm-up, s_m and beta_m. Here: medium."""

    scale: float = 1000.0
    threshold: float = 0.01
    warmup: int = 10
    momentum_scale: float = 0.3
    momentum_beta: float = 0.4


def guided_concepts(edit: Guide) -> tuple[str, ...]:
    """The concepts of a `guide` edit in the order of `sega_of(edit).concepts`: away first, then toward."""
    return tuple(guided.concept for guided in (*edit.away_from, *edit.toward))


def sega_of(edit: Guide) -> Sega:
    """Semantic guidance as a `guide` edit of method "sega" declares it."""
    scale, warmup, threshold = edit.scale, edit.warmup, edit.threshold
    momentum_scale, momentum_beta = edit.momentum_scale, edit.momentum_beta
    if (
        scale is None
        or warmup is None
        or threshold is None
        or momentum_scale is None
        or momentum_beta is None
    ):
        raise ValueError(f"edit '{edit.id}' lacks parameters of semantic guidance")
    concepts = tuple(
        SegaConcept(
            scale=scale,
            away=away,
            weight=guided.weight,
            threshold=threshold,
            warmup=warmup,
            cooldown=edit.cooldown,
        )
        for away, side in ((True, edit.away_from), (False, edit.toward))
        for guided in side
    )
    return Sega(concepts=concepts, momentum_scale=momentum_scale, momentum_beta=momentum_beta)


def sld_of(edit: Guide) -> Sld:
    """Safe latent diffusion as a `guide` edit of method "sld" declares it."""
    scale, warmup, threshold = edit.scale, edit.warmup, edit.threshold
    momentum_scale, momentum_beta = edit.momentum_scale, edit.momentum_beta
    if (
        scale is None
        or warmup is None
        or threshold is None
        or momentum_scale is None
        or momentum_beta is None
    ):
        raise ValueError(f"edit '{edit.id}' lacks parameters of safe latent diffusion")
    return Sld(
        scale=scale,
        threshold=threshold,
        warmup=warmup,
        momentum_scale=momentum_scale,
        momentum_beta=momentum_beta,
    )


def sld_concept(edit: Guide) -> str:
    """The safety concept S is one text: all that the edit leads away from, with commas, as published."""
    return ", ".join(guided.concept for guided in edit.away_from)


def sega_term(noise_uncond: Tensor, noise_concept: Tensor, concept: SegaConcept) -> Tensor:
    """One concept's part (Brack et al. 2023, section 3): +-s_e (e_e - e_0) where it is in its tail, else 0.

    The tail is |.| >= its lambda-quantile, for each sample and latent channel.
    """
    sign = -1.0 if concept.away else 1.0
    guidance = (noise_concept - noise_uncond) * sign * concept.scale
    size = guidance.abs()
    # quantile() reads fp32 and fp64 only
    wide = size.flatten(start_dim=2)
    wide = wide if wide.dtype == torch.float64 else wide.float()
    tail = torch.quantile(wide, concept.threshold, dim=2).to(guidance.dtype)
    return torch.where(size >= tail[..., None, None], guidance, torch.zeros_like(guidance))


def sega_guidance(
    noise_uncond: Tensor,
    noise_concepts: Tensor | Sequence[Tensor],
    settings: Sega,
    step: int,
    momentum: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The guidance g_t that SEGA adds at `step`, and the momentum after it; each (n, channels, h, w).

    e~ = e_0 + w (e_c - e_0) + g_t with g = sum of weight * term + s_m v and v <- b v + (1 - b) g (Brack et
    al. 2023, section 3). Momentum builds up during warm-up. As long as only some concepts are past their
    warm-up, these alone guide, with weights that sum to one and without momentum, as in the authors' code.
    """
    if len(noise_concepts) != len(settings.concepts):
        raise ValueError(f"{len(noise_concepts)} predictions for {len(settings.concepts)} concepts")
    if momentum is None:
        momentum = torch.zeros_like(noise_uncond)
    total, warm = torch.zeros_like(noise_uncond), torch.zeros_like(noise_uncond)
    warm_count, warm_weight = 0, 0.0
    for noise_concept, concept in zip(noise_concepts, settings.concepts, strict=True):
        begun, ended = step >= concept.warmup, concept.cooldown is not None and step >= concept.cooldown
        weight = max(0.0, concept.weight)  # the authors drop concepts of negative weight
        warm_count += begun
        if ended or not weight:
            continue
        term = weight * sega_term(noise_uncond, noise_concept, concept)
        total = total + term
        if begun:
            warm, warm_weight = warm + term, warm_weight + weight
    guidance = total + settings.momentum_scale * momentum
    momentum = settings.momentum_beta * momentum + (1.0 - settings.momentum_beta) * guidance
    if warm_count == len(settings.concepts):
        return guidance, momentum
    return (warm / warm_weight if warm_weight else torch.zeros_like(guidance)), momentum


def sld_guidance(
    noise_uncond: Tensor,
    noise_text: Tensor,
    noise_safety: Tensor,
    settings: Sld,
    step: int,
    momentum: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The guidance g_t that SLD takes off at `step`, and the momentum after it; each (n, channels, h, w).

    e~ = e_0 + w ((e_p - e_0) - g_t). SLD, eqs. 4-8: with D = e_p - e_S, mu = min(1, s_S |D|) where
    D < lambda, else 0, elementwise; g = mu (e_S - e_0) + s_m v; v <- b v + (1 - b) g. During warm-up g is
    zero, while the momentum builds up.
    """
    if momentum is None:
        momentum = torch.zeros_like(noise_uncond)
    difference = noise_text - noise_safety
    scale = torch.clamp(difference.abs() * settings.scale, max=1.0)
    scale = torch.where(difference >= settings.threshold, torch.zeros_like(scale), scale)
    guidance = scale * (noise_safety - noise_uncond) + settings.momentum_scale * momentum
    momentum = settings.momentum_beta * momentum + (1.0 - settings.momentum_beta) * guidance
    return (guidance if step >= settings.warmup else torch.zeros_like(guidance)), momentum


def sega(noise_uncond: Tensor, noise_text: Tensor, guidance: Tensor, guidance_scale: float) -> Tensor:
    """SEGA's prediction: e_0 + w (e_c - e_0) + g."""
    return noise_uncond + (guidance_scale * (noise_text - noise_uncond) + guidance)


def sld(noise_uncond: Tensor, noise_text: Tensor, guidance: Tensor, guidance_scale: float) -> Tensor:
    """SLD's prediction: e_0 + w ((e_p - e_0) - g)."""
    return noise_uncond + guidance_scale * ((noise_text - noise_uncond) - guidance)


def negative_prompt(noise_negative: Tensor, noise_text: Tensor, guidance_scale: float) -> Tensor:
    """A negative prompt takes the place of the empty one: e_n + w (e_c - e_n)."""
    return noise_negative + guidance_scale * (noise_text - noise_negative)
