"""What a shift learns from: banked examples at several guidance scales, and what they lack to the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call

from compiler.bank import Bank
from compiler.carriers import Carrier
from compiler.conditioning import Conditioning
from compiler.distil import Schedule
from compiler.seeds import epoch_batch
from compiler.terms import Loss
from compiler.unet import config_of, examples_at_once

# What each half learns beside the guided prediction: the same change. Small, so that a U-Net that can tell
# the halves apart may put the change into one of them.
BRANCH_WEIGHT = 0.1

Vectors: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One part of the loss: `weight` * the mean over `batch` examples a step, over `fixed` in the first.

    `examples` (n, 2) pairs bank rows with the prompt row that the text half reads, which must be what the
    bank's `cond` is of. `change` maps bank rows (b,) and guidance scales (b, 1, 1, 1) to the wanted change
    of the guided prediction (b, channels, h, w).
    """

    name: str
    bank: Bank
    examples: Tensor
    change: Callable[[Tensor, Tensor], Tensor]
    weight: float
    batch: int
    fixed: int


@dataclass(frozen=True)
class ShiftSettings:
    """`scales` are the guidance scales that examples take turns at. `names` name the draws under `seed`.

    The polish stays if it ends below `slack` times the loss that it began with.
    """

    steps: int
    learning_rate: float
    seed: int
    scales: tuple[float, ...]
    names: tuple[str, ...] = ()
    loss: Loss = "l2"
    schedule: Schedule = "constant"
    slack: float = 1.0


@dataclass
class Tally:
    """Counts evals and tells whoever listens."""

    advance: Callable[[int], None]
    evals: int = field(default=0)

    def __call__(self, evals: int) -> None:
        self.evals += evals
        self.advance(evals)


@dataclass(frozen=True)
class Examples:
    """Inputs, the base's two predictions, the wanted change at scale w (n, 1, 1, 1), shares of the loss."""

    model_input: Tensor
    timestep: Tensor
    text: Conditioning
    uncond: Tensor
    cond: Tensor
    change: Tensor
    scale: Tensor
    share: Tensor

    def part(self, rows: slice) -> Examples:
        """Some of the examples."""
        columns = (
            self.model_input,
            self.timestep,
            self.uncond,
            self.cond,
            self.change,
            self.scale,
            self.share,
        )
        found = [column[rows] for column in columns]
        text = self.text.rows(torch.arange(len(self.share))[rows])
        return Examples(found[0], found[1], text, *found[2:])


class Student:
    """A frozen U-Net with vectors added, as a function; `empty` is the row that the empty half reads."""

    def __init__(self, unet: torch.nn.Module, carrier: Carrier, empty: Conditioning) -> None:
        self.unet, self.carrier, self.empty = unet, carrier, empty
        every = dict(unet.named_parameters())
        self.weights = {name: every[name].detach() for name in carrier.names}

    @property
    def halves(self) -> int:
        """How many halves of an example have to be predicted."""
        return 2 if self.carrier.both_halves else 1

    def zeros(self) -> Vectors:
        """The vectors that change nothing."""
        return {name: weight.new_zeros(len(weight)) for name, weight in self.weights.items()}

    def residuals(self, vectors: Mapping[str, Tensor], examples: Examples) -> Tensor:
        """What is missing to the wanted change, over w: (kinds, n, channels, h, w).

        The guided prediction first: (1 - w) d_0 + w d_c - change, with d the change of each half; then,
        where both halves move, d_0 and d_c against the same change, which is what a vector shared by both
        can give.
        """
        deltas = self.carrier.deltas(vectors)
        tensors = {name: self.weights[name] + delta for name, delta in deltas.items()}
        model_input, timestep, text = examples.model_input, examples.timestep, examples.text
        if self.halves == 2:
            model_input, timestep = torch.cat([model_input] * 2), torch.cat([timestep] * 2)
            text = self.empty.expand(len(examples.share)).join(text)
        predicted: Tensor = functional_call(
            self.unet, tensors, (model_input, timestep), {**text.arguments(), "return_dict": False}
        )[0]
        scale, change = examples.scale, examples.change
        if self.halves == 1:
            return ((scale * (predicted - examples.cond) - change) / scale)[None]
        uncond, cond = predicted.chunk(2)
        of_uncond, of_cond = uncond - examples.uncond, cond - examples.cond
        guided = (1.0 - scale) * of_uncond + scale * of_cond - change
        beside = math.sqrt(BRANCH_WEIGHT)
        return torch.stack([guided, beside * (of_uncond - change), beside * (of_cond - change)]) / scale


def drawn(
    parts: Sequence[Part], prompts: Conditioning, settings: ShiftSettings, step: int, draw: str
) -> Examples:
    """The examples of one step, or the fixed ones of the Gauss-Newton step, of all parts in order."""
    columns: list[list[Tensor]] = [[] for _ in range(8)]
    for part in parts:
        count = part.fixed if draw == "fixed" else part.batch
        chosen = epoch_batch(len(part.examples), count, step, settings.seed, *settings.names, draw, part.name)
        rows, read = part.examples[chosen].unbind(1)
        # Examples, not steps, take turns at the scales: each always meets its own.
        scale = torch.tensor([settings.scales[place % len(settings.scales)] for place in chosen.tolist()])
        scale = scale[:, None, None, None]
        values = (
            part.bank.take("model_input", rows), part.bank.take("timestep", rows), read,
            part.bank.take("uncond", rows), part.bank.take("cond", rows), part.change(rows, scale),
            scale, torch.full((count,), part.weight / count),
        )  # fmt: skip
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    device = prompts.hidden.device
    joined = [torch.cat(column).to(device) for column in columns]
    return Examples(joined[0], joined[1], prompts.rows(joined[2]), *joined[3:])


def in_parts(student: Student, examples: Examples) -> list[Examples]:
    """The examples in runs that one forward and backward pass of all halves holds."""
    size = max(1, examples_at_once(config_of(student.unet)) // student.halves)
    return [examples.part(slice(at, at + size)) for at in range(0, len(examples.share), size)]
