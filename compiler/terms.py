"""What a distilled student is compared with: terms of a loss, at banked x_t, and their gradients.

A term says where x_t come from, which prompt the student reads there, and what it should predict: on its own,
or together with its other half as classifier-free guidance will use the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from compiler.bank import Bank
from compiler.conditioning import Conditioning
from compiler.precision import predicted

Loss: TypeAlias = Literal["l2", "l1", "huber"]

MOST_OFTEN = 7  # how many times more than once a row comes in an epoch
LEAST_CHANGE = 0.03  # of a timestep, as a share of the largest, from which on timesteps count alike
BRANCH_WEIGHT = 0.1  # of each half beside the guided prediction, as for shifts

# Noise predictions are of size 1; what a concept changes in them is some tenths. Below the knee l2, above l1.
HUBER_KNEE = 0.1


@dataclass(frozen=True)
class Guided:
    """Compare e_0 + w (e_c - e_0) with the same of the targets, over w^2: examples take turns at `scales`.

    What each half still lacks is multiplied by w when it is sampled from, and errors of the halves add up
    unless they are alike. Row 0 of the prompts is what the other half reads; `uncond` its target. The halves
    count a little on their own too, with the weight `alone`, so that neither drifts where the other can make
    up for it; 0 where one half is to make up for what the other learns elsewhere.
    """

    scales: tuple[float, ...]
    uncond: Callable[[Tensor], Tensor]
    alone: float = BRANCH_WEIGHT


@dataclass(frozen=True)
class Term:
    """One part of the loss: `weight` * mean |s(x_t, t, prompt) - target|^p over `batch` examples a step.

    `examples` (n, 2) pairs a bank row with the row of the prompt that the student reads there. `target` maps
    bank rows (b,) to wanted predictions (b, channels, h, w), fp32.
    """

    name: str
    bank: Bank
    examples: Tensor
    target: Callable[[Tensor], Tensor]
    weight: float
    batch: int
    target_evals: int = 0
    """Evals that `target` takes for each example; none where it reads the bank."""
    guided: Guided | None = None
    """Where given, what is compared is the guided prediction: two halves, so twice the evals."""
    row_weights: Tensor | None = None
    """(rows of the bank,): how much each counts beside the others; None is one for each."""

    @property
    def evals_each(self) -> int:
        """Evals of training on one example: a backward counts two."""
        return 3 * self._halves + self.target_evals

    @property
    def check_evals_each(self) -> int:
        """Evals of looking at one example."""
        return self._halves + self.target_evals

    @property
    def _halves(self) -> int:
        return 1 if self.guided is None else 2


def pointwise_loss(difference: Tensor, loss: Loss) -> Tensor:
    """|d|^2, |d|, or Huber's loss scaled so that it is d^2 below its knee; same shape as `difference`."""
    if loss == "l2":
        return difference.square()
    if loss == "l1":
        return difference.abs()
    size = difference.abs()
    return torch.where(size < HUBER_KNEE, size.square(), HUBER_KNEE * (2 * size - HUBER_KNEE))


@dataclass(frozen=True)
class _Examples:
    """Examples of terms of one kind: inputs, wanted predictions, the prompt's row, the share of the loss.

    `uncond`, `scale` (n, 1, 1, 1) and `alone` (n,) are the other half's wanted predictions, guidance scales
    and the weight of each half on its own, if guided.
    """

    model_input: Tensor
    timestep: Tensor
    target: Tensor
    prompt: Tensor
    share: Tensor
    uncond: Tensor | None = None
    scale: Tensor | None = None
    alone: Tensor | None = None

    def part(self, rows: slice) -> _Examples:
        """Some of them."""
        every = (self.model_input, self.timestep, self.target, self.prompt, self.share)
        halves = (None if one is None else one[rows] for one in (self.uncond, self.scale, self.alone))
        return _Examples(*(column[rows] for column in every), *halves)

    def losses(self, unet: torch.nn.Module, prompts: Conditioning, loss: Loss, bfloat16: bool) -> Tensor:
        """Each example's loss, (n,)."""
        parts = [
            weight * pointwise_loss(residual, loss).mean(dim=(1, 2, 3))
            for weight, residual in self._residuals(unet, prompts, bfloat16)
        ]
        return torch.stack(parts).sum(0)

    def _residuals(
        self, unet: torch.nn.Module, prompts: Conditioning, bfloat16: bool
    ) -> list[tuple[float | Tensor, Tensor]]:
        """What the student's predictions have over the wanted ones, (n, channels, h, w), with weights."""
        if self.scale is None or self.uncond is None or self.alone is None:
            read = prompts.rows(self.prompt)
            alone = predicted(unet, self.model_input, self.timestep, read, bfloat16=bfloat16)
            return [(1.0, alone - self.target)]
        read = prompts.rows(torch.cat([torch.zeros_like(self.prompt), self.prompt]))
        twice = torch.cat([self.model_input] * 2), torch.cat([self.timestep] * 2)
        both = predicted(unet, *twice, read, bfloat16=bfloat16)
        halves = both.chunk(2)
        uncond, cond = halves[0] - self.uncond, halves[1] - self.target
        guided = ((1.0 - self.scale) * uncond + self.scale * cond) / self.scale
        return [(1.0, guided), (self.alone, uncond), (self.alone, cond)]


def accumulate(
    unet: torch.nn.Module,
    prompts: Conditioning,
    terms: Sequence[Term],
    draws: Sequence[Tensor],
    loss: Loss,
    micro_batch: int,
    bfloat16: bool = False,
) -> list[float]:
    """Add the gradient of the terms' loss at the drawn examples to the weights; each term's mean loss.

    Terms of one kind share forwards and backwards of at most `micro_batch` predictions, in bfloat16 where
    told so; targets and losses are fp32.
    """
    means = [0.0] * len(terms)
    for places, examples, at_once in _kinds(terms, draws, prompts.hidden.device, micro_batch):
        found = []
        for start in range(0, len(examples.prompt), at_once):
            part = examples.part(slice(start, start + at_once))
            losses = part.losses(unet, prompts, loss, bfloat16)
            (losses * part.share).sum().backward()
            found.append(losses.detach())
        for place, own in zip(places, torch.cat(found).split([len(draws[k]) for k in places]), strict=True):
            means[place] = float(own.mean())
    return means


@torch.no_grad()
def check(
    unet: torch.nn.Module,
    prompts: Conditioning,
    terms: Sequence[Term],
    loss: Loss,
    micro_batch: int,
    bfloat16: bool = False,
) -> float:
    """The loss at all of the terms' examples."""
    total = 0.0
    draws = [term.examples for term in terms]
    for _, examples, at_once in _kinds(terms, draws, prompts.hidden.device, micro_batch):
        for start in range(0, len(examples.prompt), at_once):
            part = examples.part(slice(start, start + at_once))
            losses = part.losses(unet, prompts, loss, bfloat16)
            total += float((losses * part.share).sum())
    return total


def _kinds(
    terms: Sequence[Term], draws: Sequence[Tensor], device: torch.device, micro_batch: int
) -> list[tuple[list[int], _Examples, int]]:
    """Plain terms together, then guided ones: their places, their drawn examples, how many go at once."""
    found = []
    for guided in (False, True):
        places = [place for place, term in enumerate(terms) if (term.guided is not None) == guided]
        if places:
            examples = _gathered([terms[k] for k in places], [draws[k] for k in places], device)
            found.append((places, examples, max(1, micro_batch // 2) if guided else micro_batch))
    return found


def _gathered(terms: Sequence[Term], draws: Sequence[Tensor], device: torch.device) -> _Examples:
    """The drawn examples (n, 2) of terms of one kind, together."""
    columns: list[list[Tensor]] = [[], [], [], [], []]
    halves: list[list[Tensor]] = [[], [], []]
    for term, examples in zip(terms, draws, strict=True):
        rows, prompt = examples.unbind(1)
        share = torch.full((len(rows),), term.weight / len(rows))
        if term.row_weights is not None:
            share = share * term.row_weights[rows]
        drawn = term.bank.take("model_input", rows), term.bank.take("timestep", rows), term.target(rows)
        for column, value in zip(columns, (*drawn, prompt, share), strict=True):
            column.append(value.to(device))
        if term.guided is not None:
            turns = torch.tensor(term.guided.scales)[torch.arange(len(rows)) % len(term.guided.scales)]
            halves[0].append(term.guided.uncond(rows).to(device))
            halves[1].append(turns[:, None, None, None].to(device))
            halves[2].append(torch.full((len(rows),), term.guided.alone, device=device))
    together = [torch.cat(column) for column in columns]
    return _Examples(*together, *(torch.cat(half) if half else None for half in halves))


def more_often(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`rows` (n,), each once, and once more for every mean difference of two predictions (n, c, h, w) there.

    A memorised image is decided upon while there is still much noise. Later it is seen in x_t, and its
    caption and any other prompt agree: such rows have little to teach.
    """
    apart = (first - second).square().mean(dim=(1, 2, 3))
    times = 1 + (apart / apart.mean().clamp(min=1e-30)).long().clamp(max=MOST_OFTEN)
    return rows.repeat_interleave(times)


def level(timestep: Tensor, change: Tensor) -> Tensor:
    """Weights (n,), mean one, of rows at `timestep` (n,) where predictions change by `change` (n, c, h, w).

    Each timestep at which something changes counts alike, however little it is: one over the mean square, but
    no more than that of a timestep with LEAST_CHANGE of the largest. Rows of other timesteps, a warm-up's,
    count as the mean row does.
    """
    _, places, counts = timestep.unique(return_inverse=True, return_counts=True)
    squares = change.square().flatten(1).mean(1)
    means = (torch.zeros(len(counts)).index_add_(0, places, squares) / counts)[places]
    moved = means > 0
    weights = torch.ones(len(timestep))
    if moved.any():
        found = 1.0 / means[moved].clamp(min=LEAST_CHANGE * float(means.max()))
        weights[moved] = found / found.mean()
    return weights
