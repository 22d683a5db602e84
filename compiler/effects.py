"""What a teacher adds to plain guided sampling, and which branch must change so that weights do the same.

An effect predicts some prompts beside the empty one and the user's, and makes of them a guidance g at every
step. Plain sampling e_0 + w (e_c - e_0) then has to become the teacher's (METHODS, section 6):

    teacher          text branch alone     empty alone    the same in both    opposite: e_c - a g, e_0 + a g
    SEGA             e_c + g/w                            both + g
    SLD              e_c - g                              both - w g          a = w / (2 w - 1)
    negative prompt  e_c - (1 - 1/w) g     e_0 + g        both - (w - 1) g    a = (w - 1) / (2 w - 1)
    directions       e_c + g

The first in which w does not stand is the effect's own branch: what it learns there holds at every guidance
scale. Opposite changes hold nearly: those for w = 4.5 lead .94 to 1.05 times as far as SLD at w = 3 to 7.5.
A negative prompt's g is e_n - e_0. Nothing at the top of this module imports torch, so that plans can be made
of effects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.sampling import Step
    from editspec import Direction, Guide

Branch: TypeAlias = Literal["both", "text", "empty", "opposite"]


class Effect(ABC):
    """A teacher's effect. Equal facts mean equal guidance: they are part of a bank's content address."""

    branch: ClassVar[Branch]
    """The branch in which it does not depend on the guidance scale."""

    @property
    @abstractmethod
    def prompts(self) -> tuple[str, ...]:
        """What it predicts at every step, beside the empty prompt and the user's."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """JSON facts that decide its guidance."""

    @abstractmethod
    def begin(self) -> Callable[[Step], Tensor]:
        """The guidance (n, channels, h, w) of each step of one batch; called in order, it may remember."""

    @abstractmethod
    def changes(self, branch: Branch, guidance_scale: float) -> tuple[float, float]:
        """(text, empty): how much of g each branch takes for plain sampling at w to be the teacher's."""


def _opposite(amount: float) -> tuple[float, float]:
    return -amount, amount


@dataclass(frozen=True)
class Semantic(Effect):
    """Semantic guidance (Brack et al. 2023) as a `guide` edit of method "sega" declares it."""

    edit: Guide
    branch: ClassVar[Branch] = "both"

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(guided.concept for guided in (*self.edit.away_from, *self.edit.toward))

    def facts(self) -> dict[str, Any]:
        sides = {"away_from": self.edit.away_from, "toward": self.edit.toward}
        concepts = {side: [[g.concept, g.weight] for g in listed] for side, listed in sides.items()}
        return {"method": "sega", **concepts, "cooldown": self.edit.cooldown, **_parameters(self.edit)}

    def begin(self) -> Callable[[Step], Tensor]:
        from compiler.guidance import sega_guidance, sega_of

        settings = sega_of(self.edit)
        momentum: Tensor | None = None

        def guidance(step: Step) -> Tensor:
            nonlocal momentum
            found, momentum = sega_guidance(step.uncond, step.further, settings, step.index, momentum)
            return found

        return guidance

    def changes(self, branch: Branch, guidance_scale: float) -> tuple[float, float]:
        if branch == "opposite":
            raise ValueError("opposite changes for SEGA depend on the guidance scale")
        return (1.0, 1.0) if branch == "both" else (1.0 / guidance_scale, 0.0)


@dataclass(frozen=True)
class Safe(Effect):
    """Safe latent diffusion (Schramowski et al. 2023) as a `guide` edit of method "sld" declares it."""

    edit: Guide
    branch: ClassVar[Branch] = "text"

    @property
    def prompts(self) -> tuple[str, ...]:
        return (joined(self.edit),)

    def facts(self) -> dict[str, Any]:
        return {"method": "sld", "concept": joined(self.edit), **_parameters(self.edit)}

    def begin(self) -> Callable[[Step], Tensor]:
        from compiler.guidance import sld_guidance, sld_of

        settings = sld_of(self.edit)
        momentum: Tensor | None = None

        def guidance(step: Step) -> Tensor:
            nonlocal momentum
            (safety,) = step.further
            found, momentum = sld_guidance(step.uncond, step.cond, safety, settings, step.index, momentum)
            return found

        return guidance

    def changes(self, branch: Branch, guidance_scale: float) -> tuple[float, float]:
        if branch == "opposite":
            return _opposite(guidance_scale / (2.0 * guidance_scale - 1.0))
        return (-guidance_scale, -guidance_scale) if branch == "both" else (-1.0, 0.0)


@dataclass(frozen=True)
class Negative(Effect):
    """A negative prompt in the place of the empty one; g = e_n - e_0."""

    text: str
    branch: ClassVar[Branch] = "empty"

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.text,)

    def facts(self) -> dict[str, Any]:
        return {"method": "negative-prompt", "text": self.text}

    def begin(self) -> Callable[[Step], Tensor]:
        return lambda step: step.further[0] - step.uncond

    def changes(self, branch: Branch, guidance_scale: float) -> tuple[float, float]:
        if branch == "empty":
            return 0.0, 1.0
        if branch == "opposite":
            return _opposite((guidance_scale - 1.0) / (2.0 * guidance_scale - 1.0))
        away = -(guidance_scale - 1.0)
        return (away / guidance_scale, 0.0) if branch == "text" else (away, away)


@dataclass(frozen=True)
class Along(Effect):
    """Directions given by prompts, as `shift` learns them, brought into the text branch.

    g = sum of weight * [(e_prompt - e_base) - (1 - 1/w) (e_negative - e_0)] over the directions: the user's
    prompt moves as the direction's does, and away from what the direction leads away from.
    """

    directions: tuple[Direction, ...]
    guidance_scale: float
    strength: float = 1.0
    branch: ClassVar[Branch] = "text"

    @property
    def given_by_prompts(self) -> bool:
        """Whether no direction is read from a file."""
        return all(direction.file is None for direction in self.directions)

    @property
    def prompts(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for direction in self.directions:
            ends = (direction.prompt, direction.base_prompt) if _has_two_ends(direction) else ()
            found |= dict.fromkeys(t for t in (*ends, direction.negative_prompt) if t is not None)
        return tuple(found)

    def facts(self) -> dict[str, Any]:
        listed = [[d.prompt, d.base_prompt, d.negative_prompt, d.weight] for d in self.directions]
        return {
            "method": "directions",
            "directions": listed,
            "strength": self.strength,
            "guidance_scale": self.guidance_scale,
        }

    def begin(self) -> Callable[[Step], Tensor]:
        away = 1.0 - 1.0 / self.guidance_scale

        def guidance(step: Step) -> Tensor:
            predicted = dict(zip(self.prompts, step.further, strict=True))
            total = step.uncond - step.uncond
            for direction in self.directions:
                weight = self.strength * direction.weight
                if _has_two_ends(direction):
                    start = predicted[str(direction.base_prompt)]
                    total = total + weight * (predicted[str(direction.prompt)] - start)
                if direction.negative_prompt is not None:
                    total = total - weight * away * (predicted[direction.negative_prompt] - step.uncond)
            return total

        return guidance

    def changes(self, branch: Branch, guidance_scale: float) -> tuple[float, float]:
        return 1.0, 0.0


def effect_of(edit: Guide) -> Effect:
    """The effect that a `guide` edit bakes in."""
    if edit.method == "sega":
        return Semantic(edit)
    return Safe(edit) if edit.method == "sld" else Negative(joined(edit))


def joined(edit: Guide) -> str:
    """All that an edit leads away from as one text, with commas: SLD's concept S, or a negative prompt."""
    return ", ".join(guided.concept for guided in edit.away_from)


def _has_two_ends(direction: Direction) -> bool:
    return direction.base_prompt is not None and direction.base_prompt != direction.prompt


def _parameters(edit: Guide) -> dict[str, Any]:
    names = ("scale", "warmup", "threshold", "momentum_scale", "momentum_beta")
    return {name: getattr(edit, name) for name in names}
