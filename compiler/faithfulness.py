"""How near a student's plain guided predictions come to those of the teacher whose effect it has learned.

Measured at the rows of a guided bank, best one that was not trained on, as a share of what the teacher itself
changes: 0 is the teacher, 1 the unedited base.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compiler.bank import Bank
from compiler.conditioning import Conditioning
from compiler.predictions import predictions
from compiler.sampling import classifier_free_guidance

if TYPE_CHECKING:
    from compiler.effects import Effect


@dataclass(frozen=True)
class Faithfulness:
    """One bin of timesteps [low, high]: root mean squares of guided predictions, and how many rows."""

    low: float
    high: float
    rows: int
    change: float
    """Of what the teacher changes in the base's prediction."""
    error: float
    """Of what the student still lacks of the teacher's."""

    @property
    def ratio(self) -> float:
        """Error as a share of the change; 0 where neither is there."""
        return self.error / self.change if self.change else float(self.error > 0)


def faithfulness(
    student: nn.Module,
    bank: Bank,
    effect: Effect,
    unconditional: Conditioning,
    prompts: Conditioning,
    guidance_scale: float,
    bins: int = 5,
) -> list[Faithfulness]:
    """Compare at every row of `bank`, whose prompts are the rows of `prompts`; equal bins, t falling.

    Bins in which the teacher changes nothing, such as its warm-up, show the student's own drift as `error`.
    """
    every = torch.arange(len(bank))
    uncond, cond, guidance = (bank.take(name, every) for name in ("uncond", "cond", "guidance"))
    text, empty = effect.changes(effect.branch, guidance_scale)
    plain = classifier_free_guidance(uncond, cond, guidance_scale)
    wanted = classifier_free_guidance(uncond + empty * guidance, cond + text * guidance, guidance_scale)
    got = classifier_free_guidance(
        predictions(student, bank, unconditional, [0] * len(bank)),
        predictions(student, bank, prompts, bank.column("prompt").tolist()),
        guidance_scale,
    )
    timestep, order = bank.column("timestep").sort(descending=True, stable=True)
    change, error = _squares(wanted - plain)[order], _squares(got - wanted)[order]
    edges = sorted({len(bank) * number // bins for number in range(bins + 1)})
    return [
        Faithfulness(
            float(timestep[stop - 1]),
            float(timestep[start]),
            stop - start,
            float(change[start:stop].mean().sqrt()),
            float(error[start:stop].mean().sqrt()),
        )
        for start, stop in pairwise(edges)
    ]


def _squares(difference: Tensor) -> Tensor:
    """Mean square of each row, (rows,)."""
    return difference.square().flatten(1).mean(1)
