"""Safe latent diffusion at runtime (SLD, Schramowski et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from compiler.baselines import Baseline

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.guidance import Sld
    from compiler.sampling import Combine, Step
    from editspec import Guide


@dataclass(frozen=True)
class SafeLatentDiffusion(Baseline):
    """`concept` is the safety concept S: one text that names everything to lead away from."""

    concept: str
    settings: Sld

    @classmethod
    def of(cls, edit: Guide) -> Self:
        """The original of a `guide` edit of method "sld"."""
        from compiler.guidance import sld_concept, sld_of

        return cls(sld_concept(edit), sld_of(edit))

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.concept,)

    def combine(self, guidance_scale: float) -> Combine:
        from compiler.guidance import sld, sld_guidance

        momentum: Tensor | None = None

        def combined(step: Step) -> Tensor:
            nonlocal momentum
            (safety,) = step.further
            guidance, momentum = sld_guidance(
                step.uncond, step.cond, safety, self.settings, step.index, momentum
            )
            return sld(step.uncond, step.cond, guidance, guidance_scale)

        return combined
