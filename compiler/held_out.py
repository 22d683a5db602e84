"""Examples kept out of training, to see where training stops helping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compiler.terms import Term

CHECKS = 20  # at most, over the whole of training
PATIENCE = 3  # checks without a lower loss


def split(terms: Sequence[Term], share: float) -> tuple[list[Term], list[Term]]:
    """Terms to train on, and terms to check on: whole trajectories, spread evenly, never one step of each.

    Neighbouring steps of one trajectory are almost the same example. A term of a single trajectory is
    trained on and not checked. A check takes at most two batches of each term.
    """
    import torch

    if not share:
        return list(terms), []
    train, check = [], []
    for term in terms:
        trajectory = term.bank.column("trajectory")[term.examples[:, 0]]
        numbers = trajectory.unique()
        count = min(len(numbers) - 1, max(1, round(share * len(numbers))))
        if count < 1:
            train.append(term)
            continue
        places = [len(numbers) * (2 * k + 1) // (2 * count) for k in range(count)]
        out = torch.isin(trajectory, numbers[places])
        train.append(replace(term, examples=term.examples[~out]))
        held = term.examples[out]
        few = torch.linspace(0, len(held) - 1, min(len(held), 2 * term.batch)).long()
        check.append(replace(term, examples=held[few]))
    return train, check


def check_evals(batches: Sequence[int], steps: int, share: float) -> int:
    """The most evals that checking can take; `batches` are those of the terms."""
    return 2 * sum(batches) * len(check_steps(steps)) if share else 0


def check_steps(steps: int) -> tuple[int, ...]:
    """After which steps (from 1) to check: evenly spread, the last one always."""
    every = -(-steps // CHECKS)
    return tuple(step for step in range(1, steps + 1) if step % every == 0 or step == steps)


@dataclass
class Patience:
    """The lowest loss so far, and whether it is time to stop."""

    losses: list[float] = field(default_factory=list)

    @property
    def best(self) -> bool:
        """Whether the last loss is the lowest."""
        return self.losses[-1] == min(self.losses)

    @property
    def exhausted(self) -> bool:
        """Whether the lowest loss is `PATIENCE` checks old."""
        return len(self.losses) - 1 - self.losses.index(min(self.losses)) >= PATIENCE
