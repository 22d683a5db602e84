"""How near a student's plain guided predictions come to those of the teacher whose effect it has learned.

Measured at the rows of a guided bank, best one that was not trained on, as a share of what the teacher itself
changes: 0 is the teacher, 1 the unedited base. Passes that learn guidance measure themselves and record it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compiler.bank import Bank
from compiler.conditioning import Conditioning
from compiler.predictions import predictions
from compiler.sampling import classifier_free_guidance

if TYPE_CHECKING:
    from compiler.effects import Effect
    from compiler.guided_request import GuidedRequest
    from compiler.passes import PassContext


BINS = 5  # of timesteps, with equally many rows


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

    def as_dict(self) -> dict[str, Any]:
        """JSON facts, rounded so that no last bit of a prediction shows."""
        figures = {"change": self.change, "error": self.error, "ratio": self.ratio}
        rounded = {name: float(f"{figure:.3g}") for name, figure in figures.items()}
        return {"timesteps": [self.low, self.high], "rows": self.rows, **rounded}


def faithfulness(
    student: nn.Module,
    bank: Bank,
    effect: Effect,
    unconditional: Conditioning,
    prompts: Conditioning,
    guidance_scale: float,
    bins: int = BINS,
) -> list[Faithfulness]:
    """Of a student of the base, at every row of `bank`, whose prompts are the rows of `prompts`."""
    every = torch.arange(len(bank))
    before = bank.take("uncond", every), bank.take("cond", every)
    after = _halves(student, bank, unconditional, prompts)
    return _compared(bank, effect, before, after, guidance_scale, bins)


def faithfulness_of(
    request: GuidedRequest,
    deltas: Mapping[str, Tensor],
    scales: Sequence[float],
    context: PassContext,
    said: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """JSON facts, one for each guidance scale, of a pass that has learned `deltas`, at the rows of `request`.

    `missed` is the ratio over all rows. The teacher's guidance counts from the weights as the pass has found
    them: so it was taught. `said` tells what the student reads in the place of a prompt: a phrase beside it.
    """
    from compiler.guided_bank import GuidingTeacher
    from compiler.unet import add_deltas

    teacher = GuidingTeacher(context)
    bank, empty = teacher.bank(request), teacher.unconditional
    add_deltas(teacher.unet, context.upstream)
    before = _halves(teacher.unet, bank, empty, teacher.encode(request.prompts))
    add_deltas(teacher.unet, deltas)
    after = _halves(teacher.unet, bank, empty, teacher.encode([said(prompt) for prompt in request.prompts]))
    found = []
    for scale in scales:
        (whole,) = _compared(bank, request.effect, before, after, scale, bins=1)
        bins = [one.as_dict() for one in _compared(bank, request.effect, before, after, scale, BINS)]
        found.append({"guidance_scale": round(scale, 4), "missed": whole.as_dict()["ratio"], "bins": bins})
    return found


def _halves(
    student: nn.Module, bank: Bank, unconditional: Conditioning, prompts: Conditioning
) -> tuple[Tensor, Tensor]:
    """Predictions for the empty prompt and for each row's own."""
    asked = bank.column("prompt").tolist()
    empty = predictions(student, bank, unconditional, [0] * len(bank))
    return empty, predictions(student, bank, prompts, asked)


def _compared(
    bank: Bank,
    effect: Effect,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    guidance_scale: float,
    bins: int,
) -> list[Faithfulness]:
    """Equal bins of rows, t falling, from both halves' predictions before and after training.

    Bins in which the teacher changes nothing, such as its warm-up, show the student's own drift as `error`.
    """
    guidance = bank.take("guidance", torch.arange(len(bank)))
    text, empty = effect.changes(effect.branch, guidance_scale)
    change = classifier_free_guidance(empty * guidance, text * guidance, guidance_scale)
    wanted = classifier_free_guidance(*before, guidance_scale) + change
    error = classifier_free_guidance(*after, guidance_scale) - wanted
    timestep, order = bank.column("timestep").sort(descending=True, stable=True)
    changes, errors = _squares(change)[order], _squares(error)[order]
    edges = sorted({len(bank) * number // bins for number in range(bins + 1)})
    return [
        Faithfulness(
            float(timestep[stop - 1]),
            float(timestep[start]),
            stop - start,
            float(changes[start:stop].mean().sqrt()),
            float(errors[start:stop].mean().sqrt()),
        )
        for start, stop in pairwise(edges)
    ]


def _squares(difference: Tensor) -> Tensor:
    """Mean square of each row, (rows,)."""
    return difference.square().flatten(1).mean(1)
