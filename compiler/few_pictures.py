"""What a few pictures promise about a gate, before it is run: which to draw, and how clean they must be.

Drawn with seeds that no gate uses, for searches that judge many settings and must not see the gate's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compiler.generate import Draw, Sampling
from compiler.seeds import derive
from editspec.defaults import plain
from editspec.templates import fill

if TYPE_CHECKING:
    from compiler.evaluators import Evaluator
    from compiler.gates.gate import Trial
    from editspec import EditSpec, Erase, Gate

GONE = ("erased", "implicit")
KEPT = ("preserved", "neighbours")


def gates_on(edit: Erase, spec: EditSpec) -> tuple[Gate, ...]:
    """The gates that decide whether the edit's concept is gone."""
    words = {plain(word) for word in (edit.concept, *edit.aliases)}
    judged = [gate for gate in spec.gates if gate.gate in GONE]
    return tuple(gate for gate in judged if gate.concept and plain(gate.concept) in words)


def gates_beside(spec: EditSpec) -> tuple[Gate, ...]:
    """The gates that decide whether everything else is still there."""
    return tuple(gate for gate in spec.gates if gate.gate in KEPT)


def draws_of(gate: Gate, spec: EditSpec, numbers: range) -> tuple[tuple[Draw, ...], Sampling]:
    """Pictures of what should be gone: the gate's prompts in turn, with seeds of the search's own."""
    prompts = list(dict.fromkeys(fill(prompt, gate.concept or "") for prompt in gate.prompts))
    draws = [_draw(prompts[number % len(prompts)], number, spec) for number in numbers]
    return tuple(draws), Sampling(gate.guidance_scale, gate.steps)


def trials_of(gate: Gate, spec: EditSpec, numbers: range) -> tuple[tuple[Trial, ...], Sampling]:
    """Pictures of what should stay: the gate's concepts in turn, with seeds of the search's own."""
    from compiler.gates import discover

    planned = discover()[gate.gate].plan(gate, spec)
    pairs = {(trial.draw.prompt, trial.concept): trial for trial in planned.trials}
    in_turn = list(pairs.values())
    trials = []
    for number in numbers:
        one = in_turn[number % len(in_turn)]
        trials.append(replace(one, draw=_draw(one.draw.prompt, number, spec)))
    return tuple(trials), planned.sampling


def _draw(prompt: str, number: int, spec: EditSpec) -> Draw:
    return Draw(prompt, derive(spec.seed, "strength", prompt, number) % 2**31)


def holds(seen: int, pictures: int, gate: Gate) -> bool:
    """Whether so few pictures promise that the gate will hold: at most half the rate that it allows."""
    return seen <= int(pictures * (gate.max_rate or 0.0) / 2)


def stays(lost: int, pictures: int, gate: Gate) -> bool:
    """Whether so few pictures promise it of a gate on losses: at most half the loss that it allows, or one.

    `lost` are pictures recognised with the base alone, less those recognised with the edit alone. One may be
    chance: in twenty pictures, an edit that loses one in a hundred would else fail every fifth time.
    """
    return lost <= max(1, int(pictures * (gate.max_loss or 0.0) / 2))


def seen_in(evaluators: Sequence[Evaluator], images: Any, gate: Gate) -> int:
    """In how many pictures some evaluator sees the gate's concept."""
    import numpy as np

    flags = np.zeros(len(images), np.bool_)
    for one in evaluators:
        label = one.label_for(gate.concept or "", gate.label)
        if label is not None:
            flags |= one.shows(one.score(images), label)
    return int(flags.sum())
