"""The runtime originals of what edits bake in, as plain sampling loops that edited models are held against.

One file = one original. Each says which prompts it predicts beside the two of classifier-free guidance, how
it combines the predictions, and what it hooks into the U-Net; none of it is ever part of an artifact.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from compiler.conditioning import Conditioning
    from compiler.sampling import Combine, Sampled, Scheduler


class Baseline(ABC):
    """One runtime original with its parameters."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """What it predicts beside the empty prompt and the user's."""
        return ()

    @abstractmethod
    def combine(self, guidance_scale: float) -> Combine:
        """A fresh combination of predictions for one batch; it may remember earlier steps."""

    @contextlib.contextmanager
    def hooked(self, unet: torch.nn.Module) -> Iterator[None]:
        """Inside, `unet` is as this original changes it; afterwards as it was."""
        yield


class ClassifierFreeGuidance(Baseline):
    """Nothing added: the base itself, through the same loop."""

    def combine(self, guidance_scale: float) -> Combine:
        from compiler.sampling import classifier_free_guidance

        return lambda step: classifier_free_guidance(step.uncond, step.cond, guidance_scale)


def sample_with(
    baseline: Baseline,
    unet: torch.nn.Module,
    scheduler: Scheduler,
    encode: Callable[[Sequence[str]], Conditioning],
    noise: torch.Tensor,
    unconditional: Conditioning,
    prompts: Conditioning,
    *,
    steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator],
) -> Sampled:
    """`compiler.sampling.sample` with the original at work; `encode` gives a row for each prompt."""
    from compiler.sampling import sample

    with baseline.hooked(unet):
        return sample(
            unet,
            scheduler,
            noise,
            unconditional,
            prompts,
            steps=steps,
            guidance_scale=guidance_scale,
            generators=generators,
            further=[encode([prompt]) for prompt in baseline.prompts],
            combine=baseline.combine(guidance_scale),
        )
