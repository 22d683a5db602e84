"""A negative prompt at runtime: it takes the place of the empty prompt in classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.baselines import Baseline

if TYPE_CHECKING:
    from compiler.sampling import Combine


@dataclass(frozen=True)
class NegativePrompt(Baseline):
    """`text` is what to lead away from."""

    text: str

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.text,)

    def combine(self, guidance_scale: float) -> Combine:
        from compiler.guidance import negative_prompt

        return lambda step: negative_prompt(step.further[0], step.cond, guidance_scale)
