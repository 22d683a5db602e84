"""Semantic guidance at runtime (SEGA, Brack et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from compiler.baselines import Baseline

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.guidance import Sega
    from compiler.sampling import Combine, Step
    from editspec import Guide


@dataclass(frozen=True)
class SemanticGuidance(Baseline):
    """`concepts` are prompts, one for each of `settings.concepts`."""

    concepts: tuple[str, ...]
    settings: Sega

    @classmethod
    def of(cls, edit: Guide) -> Self:
        """The original of a `guide` edit of method "sega"."""
        from compiler.guidance import guided_concepts, sega_of

        return cls(guided_concepts(edit), sega_of(edit))

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.concepts

    def combine(self, guidance_scale: float) -> Combine:
        from compiler.guidance import sega, sega_guidance

        momentum: Tensor | None = None

        def combined(step: Step) -> Tensor:
            nonlocal momentum
            guidance, momentum = sega_guidance(step.uncond, step.further, self.settings, step.index, momentum)
            return sega(step.uncond, step.cond, guidance, guidance_scale)

        return combined
