"""Judges a student before it is linked: the stock pipeline with its weights, and the spec's evaluators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.deltas import added
from compiler.evaluators import open_evaluators
from compiler.few_pictures import draws_of, holds, seen_in, stays, trials_of
from compiler.gates.evidence import Evidence
from compiler.generate import Sampler

if TYPE_CHECKING:
    from compiler.generate import Draw, Images, Sampling
    from compiler.passes import PassContext
    from editspec import Gate


class Judge:
    """Draws a few pictures for each gate with the base plus changes. `evals` counts what that took.

    The same numbers are the same prompts and seeds; others are fresh ones. `gates` are on what should be
    gone, `beside` on what should stay, compared with the frozen base.
    """

    def __init__(self, context: PassContext, gates: Sequence[Gate], beside: Sequence[Gate] = ()) -> None:
        self._context, self._gates, self._beside = context, tuple(gates), tuple(beside)
        self._bases: dict[tuple[str, range], Images] = {}
        self._sampler = Sampler(context.checkpoint, device=context.device)
        self._evaluators = open_evaluators(context.spec, context.spec.folder, context.device)
        self.evals = 0

    def __call__(self, deltas: Mapping[str, Tensor], numbers: range) -> tuple[int, int, bool]:
        """(pictures in which the concept is seen, pictures, whether every gate promises to hold)."""
        seen = pictures = 0
        held = True
        with changed(self._sampler.pipeline.unet, added(self._context.upstream, deltas)):
            for gate in self._gates:
                draws, sampling = draws_of(gate, self._context.spec, numbers)
                images = self._drawn(draws, sampling, gate)
                found = seen_in(self._evaluators, images, gate)
                held &= holds(found, len(draws), gate)
                seen, pictures = seen + found, pictures + len(draws)
        return seen, pictures, held

    def losses(self, deltas: Mapping[str, Tensor], numbers: range) -> tuple[int, int, bool]:
        """(pictures recognised with the base alone less those with the edit alone, pictures, all may hold).

        Zero pictures where no gate watches what should stay.
        """
        lost = pictures = 0
        held = True
        for gate in self._beside:
            trials, sampling = trials_of(gate, self._context.spec, numbers)
            draws = tuple(trial.draw for trial in trials)
            base = self._base(gate, numbers, draws, sampling)
            with changed(self._sampler.pipeline.unet, added(self._context.upstream, deltas)):
                edited = self._drawn(draws, sampling, gate)
            evidence = Evidence(draws, base, edited, self._evaluators)
            before, after = evidence.recognised(trials, "base"), evidence.recognised(trials, "edited")
            fewer = int(before.sum()) - int(after.sum())
            held &= stays(fewer, len(draws), gate)
            lost, pictures = lost + fewer, pictures + len(draws)
        return lost, pictures, held

    def _base(self, gate: Gate, numbers: range, draws: tuple[Draw, ...], sampling: Sampling) -> Images:
        """The frozen base's pictures, drawn once."""
        key = (gate.id, numbers)
        if key not in self._bases:
            self._bases[key] = self._drawn(draws, sampling, gate)
        return self._bases[key]

    def _drawn(self, draws: tuple[Draw, ...], sampling: Sampling, gate: Gate) -> Images:
        self.evals += 2 * len(draws) * sampling.steps
        return self._sampler.images(draws, sampling, progress=self._context.progress, name=f"judge {gate.id}")


@contextmanager
def changed(unet: torch.nn.Module, changes: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the U-Net has these changes (fp32, by name), rounded to its type; then its own again."""
    weights = dict(unet.named_parameters())
    before = {name: weights[name].detach().clone() for name in changes}
    try:
        with torch.no_grad():
            for name, change in changes.items():
                weights[name].copy_(before[name].float() + change.to(before[name].device))
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                weights[name].copy_(weight)
