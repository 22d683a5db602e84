"""The distil engine: train chosen weights until plain sampling gives what a teacher predicts at banked x_t.

One loop for every distilled edit. An edit says where x_t come from (a bank), which prompt the student reads
there, what it should predict (a function of cached teacher predictions) and how much that counts; these terms
add up to the loss. Only the selected weights have gradients and optimiser state, all in fp32: in bf16, Adam's
updates at the usual learning rates vanish in the rounding of every weight above 1/64. (METHODS, section 0.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from compiler.conditioning import Conditioning
from compiler.held_out import Patience, check_evals, check_steps, split
from compiler.optimiser import Optimiser, OptimiserKind, lead_back
from compiler.seeds import epoch_batch, reproducible
from compiler.terms import Loss, Term, accumulate, check
from compiler.unet import config_of, examples_at_once, recomputes, recomputing

Schedule: TypeAlias = Literal["constant", "linear", "cosine"]

Watch: TypeAlias = Callable[[int, Mapping[str, Tensor]], None]
"""Told, in the middle of training, of the steps done and of the weights' changes by then."""


class Diverged(Exception):
    """The loss is no longer finite. `step` counts from 0."""

    def __init__(self, term: str, step: int) -> None:
        super().__init__(f"the loss of '{term}' is not finite at step {step}")
        self.term, self.step = term, step


@dataclass(frozen=True)
class DistilSettings:
    """How long and how fast to train. `seed` and `names` name the draw of the batches.

    `ema` is the decay of the moving average that becomes the result; 0 takes the last step's weights.
    `held_out` is the share of trajectories to check on; training stops where their loss no longer falls.
    `decay` times its rate is what each step takes back of the changes so far.
    `bfloat16` rounds the network's arithmetic (compiler.precision). A block of a longer training has `done`
    steps before it, and `whole` steps are the length of the schedule; 0 means that this is all.
    """

    steps: int
    learning_rate: float
    seed: int
    names: tuple[str, ...] = ()
    loss: Loss = "l2"
    schedule: Schedule = "constant"
    ema: float = 0.0
    held_out: float = 0.0
    bfloat16: bool = False
    optimiser: OptimiserKind = "adam"
    decay: float = 0.0
    done: int = 0
    whole: int = 0


@dataclass(frozen=True)
class Distilled:
    """fp32 changes by tensor name, on the CPU; each term's mean loss a step; evals (a backward counts 2).

    `held_out` are the losses of the checks, of which the lowest gave the result; empty without checks.
    """

    deltas: dict[str, Tensor]
    curve: dict[str, list[float]]
    evals: int
    held_out: list[float] = field(default_factory=list)


def training_evals(terms: Sequence[tuple[int, int]], steps: int, held_out: float = 0.0) -> int:
    """Evals of training terms given as (batch, target_evals), checks at their most: a backward counts two."""
    each = sum(batch * (3 + target) for batch, target in terms)
    checked = [batch * (1 + target) for batch, target in terms]
    return steps * each + check_evals(checked, steps, held_out)


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
    watch: Watch | None = None,
    watched: Collection[int] = (),
) -> Distilled:
    """Train the weights called `names`, starting from `unet` as it is; leaves `unet` as it was.

    `prompts` holds the rows that the terms' examples name. The same arguments give the same bits.
    `watch` is called after each of the steps `watched`, counted from 1.
    Raises `Diverged` when the loss is not finite.
    """
    micro_batch = examples_at_once(config_of(unet))
    trained, checked = split(terms, settings.held_out)
    curve: dict[str, list[float]] = {term.name: [] for term in trained}
    patience, checks = Patience(), set(check_steps(settings.steps))
    evals = 0
    with reproducible(), torch.enable_grad(), trainable(unet, names) as (weights, start):
        optimiser = Optimiser(settings.optimiser, list(weights.values()), settings.learning_rate)
        average = {name: value.clone() for name, value in start.items()} if settings.ema else {}
        best: dict[str, Tensor] | None = None
        for step in range(settings.steps):
            drawn = draws(trained, settings, step)
            losses = accumulate(unet, prompts, trained, drawn, settings.loss, micro_batch, settings.bfloat16)
            for term, loss in zip(trained, losses, strict=True):
                if not math.isfinite(loss):
                    raise Diverged(term.name, step)
                curve[term.name].append(loss)
            rate = learning_rate(settings, step)
            optimiser.step(rate)
            if settings.decay:
                lead_back(weights, start, settings.decay * rate)
            _average(average, weights, settings.ema, step)
            spent = sum(term.evals_each * term.batch for term in trained)
            if checked and step + 1 in checks:
                patience.losses.append(
                    check(unet, prompts, checked, settings.loss, micro_batch, settings.bfloat16)
                )
                spent += sum(term.check_evals_each * len(term.examples) for term in checked)
                if patience.best:
                    best = _changes(average or weights, start)
            evals += spent
            advance(spent)
            if watch is not None and step + 1 in watched:
                watch(step + 1, _changes(average or weights, start))
            if checked and patience.losses and patience.exhausted:
                break
        deltas = best if best is not None else _changes(average or weights, start)
    return Distilled(deltas, curve, evals, patience.losses)


def draws(terms: Sequence[Term], settings: DistilSettings, step: int) -> list[Tensor]:
    """The examples of one step, (batch, 2) of each term: every one once before any comes again."""
    return [
        term.examples[
            epoch_batch(len(term.examples), term.batch, step, settings.seed, *settings.names, term.name)
        ]
        for term in terms
    ]


def _average(average: dict[str, Tensor], weights: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Move the average towards the weights; early on faster, so that the start does not stay in it."""
    rate = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in average.items():
            value.lerp_(weights[name], 1 - rate)


def _changes(weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: (weight.detach() - start[name]).cpu() for name, weight in weights.items()}


def learning_rate(settings: DistilSettings, step: int) -> float:
    """The rate of step `step` of a training, which may be a block of a longer one."""
    done = (settings.done + step) / (settings.whole or settings.steps)
    return settings.learning_rate * falling(settings.schedule, done)


def falling(schedule: Schedule, done: float) -> float:
    """The share of the full rate with `done` of training over: one, or falling in a line or half cosine."""
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}[schedule]


@contextmanager
def trainable(
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
        with recomputing(unet, recomputes(config_of(unet))):
            yield weights, before
    finally:
        unet.requires_grad_(False).train(training)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.grad = None
                weight.copy_(before[name])
