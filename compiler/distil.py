"""The distil engine: train chosen weights until plain sampling gives what a teacher predicts at banked x_t.

One loop for every distilled edit. An edit says where x_t come from (a bank), which prompt the student reads
there, what it should predict (a function of cached teacher predictions) and how much that counts; these terms
add up to the loss. Only the selected weights have gradients and optimiser state, all in fp32: in bf16, Adam's
updates at the usual learning rates vanish in the rounding of every weight above 1/64. (METHODS, section 0.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from compiler.bank import Bank
from compiler.conditioning import Conditioning
from compiler.sampling import predict
from compiler.seeds import epoch_batch, reproducible
from compiler.unet import config_of, examples_at_once

Loss: TypeAlias = Literal["l2", "l1", "huber"]
Schedule: TypeAlias = Literal["constant", "linear", "cosine"]

# Noise predictions are of size 1; what a concept changes in them is some tenths. Below the knee l2, above l1.
HUBER_KNEE = 0.1


class Diverged(Exception):
    """The loss is no longer finite. `step` counts from 0."""

    def __init__(self, term: str, step: int) -> None:
        super().__init__(f"the loss of '{term}' is not finite at step {step}")
        self.term, self.step = term, step


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


@dataclass(frozen=True)
class DistilSettings:
    """How long and how fast to train. `seed` and `names` name the draw of the batches."""

    steps: int
    learning_rate: float
    seed: int
    names: tuple[str, ...] = ()
    loss: Loss = "l2"
    schedule: Schedule = "constant"


@dataclass(frozen=True)
class Distilled:
    """fp32 changes by tensor name, on the CPU; each term's mean loss a step; evals (a backward counts 2)."""

    deltas: dict[str, Tensor]
    curve: dict[str, list[float]]
    evals: int


def summary(curve: Mapping[str, Sequence[float]], points: int = 20) -> dict[str, list[float]]:
    """Each term's losses as at most `points` means of equal stretches of training, to five digits."""
    short = {}
    for name, losses in curve.items():
        edges = sorted({len(losses) * number // points for number in range(points + 1)})
        means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
        short[name] = [float(f"{mean:.5g}") for mean in means]
    return short


def distil(
    unet: torch.nn.Module,
    names: Sequence[str],
    prompts: Conditioning,
    terms: Sequence[Term],
    settings: DistilSettings,
    advance: Callable[[int], None] = lambda evals: None,
) -> Distilled:
    """Train the weights called `names`, starting from `unet` as it is; leaves `unet` as it was.

    `prompts` holds the rows that the terms' examples name. The same arguments give the same bits.
    Raises `Diverged` when the loss is not finite.
    """
    micro_batch = examples_at_once(config_of(unet))
    curve: dict[str, list[float]] = {term.name: [] for term in terms}
    evals = 0
    with reproducible(), _trainable(unet, names) as (weights, start):
        optimiser = torch.optim.Adam(list(weights.values()), lr=settings.learning_rate, fused=True)
        for step in range(settings.steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(settings, step)
            optimiser.zero_grad(set_to_none=True)
            losses = _accumulate(unet, prompts, terms, settings, step, micro_batch)
            for term, loss in zip(terms, losses, strict=True):
                if not math.isfinite(loss):
                    raise Diverged(term.name, step)
                curve[term.name].append(loss)
            optimiser.step()
            spent = 3 * sum(term.batch for term in terms)
            evals += spent
            advance(spent)
        deltas = {name: (weight.detach() - start[name]).cpu() for name, weight in weights.items()}
    return Distilled(deltas, curve, evals)


def learning_rate(settings: DistilSettings, step: int) -> float:
    """The rate of step `step`: constant, or falling to zero in a line or a half cosine."""
    done = step / settings.steps
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}
    return settings.learning_rate * factor[settings.schedule]


def pointwise_loss(difference: Tensor, loss: Loss) -> Tensor:
    """|d|^2, |d|, or Huber's loss scaled so that it is d^2 below its knee; same shape as `difference`."""
    if loss == "l2":
        return difference.square()
    if loss == "l1":
        return difference.abs()
    size = difference.abs()
    return torch.where(size < HUBER_KNEE, size.square(), HUBER_KNEE * (2 * size - HUBER_KNEE))


def _accumulate(
    unet: torch.nn.Module,
    prompts: Conditioning,
    terms: Sequence[Term],
    settings: DistilSettings,
    step: int,
    micro_batch: int,
) -> list[float]:
    """Add the gradient of one step's loss to the weights, in parts; returns each term's mean loss."""
    device = prompts.hidden.device
    columns: list[list[Tensor]] = [[], [], [], [], []]
    for term in terms:
        draw = epoch_batch(len(term.examples), term.batch, step, settings.seed, *settings.names, term.name)
        rows, prompt = term.examples[draw].unbind(1)
        share = torch.full((term.batch,), term.weight / term.batch)
        drawn = term.bank.take("model_input", rows), term.bank.take("timestep", rows), term.target(rows)
        for column, value in zip(columns, (*drawn, prompt, share), strict=True):
            column.append(value)
    model_input, timestep, target, prompt, share = (torch.cat(column).to(device) for column in columns)
    found = []
    for start in range(0, len(prompt), micro_batch):
        part = slice(start, start + micro_batch)
        predicted = predict(unet, model_input[part], timestep[part], prompts.rows(prompt[part]))
        loss = pointwise_loss(predicted - target[part], settings.loss).mean(dim=(1, 2, 3))
        (loss * share[part]).sum().backward()
        found.append(loss.detach())
    means, at = list[float](), 0
    losses = torch.cat(found)
    for term in terms:
        means.append(float(losses[at : at + term.batch].mean()))
        at += term.batch
    return means


@contextmanager
def _trainable(
    unet: torch.nn.Module, names: Sequence[str]
) -> Iterator[tuple[dict[str, torch.nn.Parameter], dict[str, Tensor]]]:
    """The named weights, gradients on there alone, and a copy of their values, which come back on leaving."""
    every = dict(unet.named_parameters())
    weights = {name: every[name] for name in names}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    training = unet.training
    unet.eval().requires_grad_(False)  # no dropout: a target is one prediction, not a distribution
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield weights, before
    finally:
        unet.requires_grad_(False).train(training)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.grad = None
                weight.copy_(before[name])
