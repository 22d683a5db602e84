"""What to ask of a bank of guided trajectories and what that costs; without tensors, so that plans can ask.

A teacher with an effect walks its own trajectories, not those of plain sampling: where SEGA has led away
from a crack, x_t is what the edited model will meet. The guidance g_t is recorded on the way, so its momentum
needs no approximation and its warm-up is a threshold in t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compiler.bank_request import BankRequest, shared_out, unet_calls
from compiler.effects import Effect
from compiler.seeds import derive

# An effect that does not depend on the guidance scale is still met at other x_t under another one: with the
# default of 7.5, trajectories take turns at 7.5, 5 and 3.
TURNS = (1.0, 2 / 3, 2 / 5)
HELD_OUT = 24  # trajectories on which a pass checks what it has learned


@dataclass(frozen=True)
class GuidedRequest:
    """`plain` says which prompts, how many trajectories and steps; `effect` guides them.

    Trajectories take turns at the guidance scales `scales`. A further column, `guidance`, holds g_t.
    """

    plain: BankRequest
    effect: Effect
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1:
            raise ValueError("a guided bank needs guidance scales of at least 1")
        if self.plain.also:
            raise ValueError("a guided bank keeps no further predictions but its guidance")

    @property
    def prompts(self) -> tuple[str, ...]:
        """What the trajectories are sampled for."""
        return self.plain.prompts

    def evals(self, scheduler_config: Mapping[str, Any]) -> int:
        """U-Net evals of building: at each step the two of plain sampling and those of the effect."""
        calls = unet_calls(scheduler_config, self.plain.steps)
        return self.plain.total * calls * (2 + len(self.effect.prompts))

    def as_dict(self) -> dict[str, Any]:
        """Everything that decides the rows, beside the checkpoint: part of the content address."""
        return {**self.plain.as_dict(), "effect": self.effect.facts(), "scales": list(self.scales)}


def scales_around(guidance_scale: float) -> tuple[float, ...]:
    """The guidance scales that trajectories take turns at, each at least 1 and each once."""
    return tuple(dict.fromkeys(max(1.0, turn * guidance_scale) for turn in TURNS))


def held_out(request: GuidedRequest) -> GuidedRequest:
    """`HELD_OUT` trajectories, or one for each where fewer are learned on, of other noise than `request`'s.

    For prompts that are spread evenly over its own.
    """
    plain = request.plain
    total = min(HELD_OUT, plain.total)
    count = min(total, len(plain.prompts))
    prompts = tuple(plain.prompts[len(plain.prompts) * place // count] for place in range(count))
    other = derive(plain.seed, "held out")
    held = replace(plain, prompts=prompts, trajectories=shared_out(total, count), seed=other)
    return replace(request, plain=held)


def checking_evals(request: GuidedRequest, scheduler_config: Mapping[str, Any]) -> int:
    """U-Net evals of checking on `held_out(request)`: sampling it, both halves there before and after."""
    held = held_out(request)
    return held.evals(scheduler_config) + 4 * held.plain.rows(scheduler_config)
