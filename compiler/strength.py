"""`strength: "auto"`: the least drift at which the gates on a concept hold, searched on one bank.

A larger negative guidance erases more and harms more (ESD, section 5.4: eta 1, 3, 10 remove 83, 88, 92 % of
nudity at a cost of 7, 14, 34 % of other objects' accuracy). Every setting is trained on the same cached bank
and judged in a few pictures, drawn with seeds that the gates do not use. Erasure grows with eta, so the
search bisects a ladder of etas, then tries other numbers of steps where it ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.generate import Draw, Sampling
from compiler.seeds import derive
from editspec import Erase, Gate
from editspec.defaults import plain
from editspec.templates import fill

if TYPE_CHECKING:
    from torch import nn

    from compiler.distil import Distilled
    from compiler.esd import Lesson
    from compiler.evaluators import Evaluator
    from compiler.passes import PassContext
    from editspec import EditSpec

LADDER = (0.5, 1.0, 2.0, 4.0, 8.0)  # times the edit's negative_guidance
BISECTIONS = 3  # trials that find a place among five rungs
PICTURES = 20  # of each gate in a trial
MOST_ETA = 100.0  # as in the schema
DRIFT_EXAMPLES = 64  # at most, of each of the two keep terms, to tell how far a setting drifts


@dataclass(frozen=True)
class Trial:
    """One setting: what it erased in `pictures` pictures, and how far what should stay drifted."""

    negative_guidance: float
    steps: int
    seen: int
    pictures: int
    drift: float
    holds: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON facts for edits.json."""
        return {
            "negative_guidance": self.negative_guidance,
            "steps": self.steps,
            "rate": round(self.seen / self.pictures, 4),
            "pictures": self.pictures,
            "drift": float(f"{self.drift:.4g}"),
            "holds": self.holds,
        }


def gates_on(edit: Erase, spec: EditSpec) -> tuple[Gate, ...]:
    """The gates that decide whether the concept is gone."""
    words = {plain(word) for word in (edit.concept, *edit.aliases)}
    judged = [gate for gate in spec.gates if gate.gate in ("erased", "implicit")]
    return tuple(gate for gate in judged if gate.concept and plain(gate.concept) in words)


def strength_problems(edit: Erase, spec: EditSpec) -> list[tuple[str, str]]:
    """Why no strength can be searched: (JSON pointer, message) pairs."""
    if gates_on(edit, spec):
        return []
    message = f"'auto' needs a gate 'erased' or 'implicit' on '{edit.concept}' that says when it is gone"
    return [(f"{spec.pointer(edit)}/strength", message)]


def strength_reads(edit: Erase, spec: EditSpec) -> Any:
    """What the search depends on beside the edit: its gates and who judges them. JSON."""
    from compiler.evaluators import open_evaluators

    places = [spec.gates.index(gate) for gate in gates_on(edit, spec)]
    evaluators = open_evaluators(spec, spec.folder)
    return {
        "gates": [spec.document["gates"][place] for place in places],
        "evaluators": [[one.id, one.threshold, dict(one.named), one.digests] for one in evaluators],
    }


def searching_steps(edit: Erase) -> list[int]:
    """The training steps of every trial, at most: the bisection, then one with half or twice the steps."""
    return [edit.steps] * BISECTIONS + [2 * edit.steps]


def judging_evals(edit: Erase, spec: EditSpec) -> int:
    """Evals of judging every trial, at most: pictures, and predictions that tell the drift."""
    pictures = sum(2 * PICTURES * gate.steps for gate in gates_on(edit, spec))
    return (BISECTIONS + 1) * (pictures + 2 * DRIFT_EXAMPLES)


def search(
    learnt: Lesson, student: nn.Module, names: Sequence[str], context: PassContext, evals: int
) -> tuple[Distilled, dict[str, Any]]:
    """The setting of least drift at which the gates hold; else the one that erased most. With its record.

    `student` is base plus upstream, and ends so. The record lists every setting that was tried.
    """
    from compiler.esd import drift, fit
    from compiler.judging import Judge
    from compiler.unet import add_deltas

    (edit,) = learnt.edits
    judge = Judge(context, gates_on(edit, context.spec))
    found: list[tuple[Trial, Distilled]] = []
    spent = 0

    def trial(eta: float, steps: int) -> Trial:
        nonlocal spent
        setting = replace(edit, negative_guidance=eta, steps=steps)
        done = fit(learnt, [setting], student, names, context, evals // (BISECTIONS + 1))
        add_deltas(student, done.deltas)
        moved = drift(student, learnt)
        add_deltas(student, {name: -change for name, change in done.deltas.items()})
        seen, pictures, holds = judge(done.deltas)
        spent += done.evals
        found.append((Trial(eta, steps, seen, pictures, moved, holds), done))
        return found[-1][0]

    rungs = [min(MOST_ETA, factor * edit.negative_guidance) for factor in LADDER]
    held: int | None = None
    low, high = 0, len(rungs) - 1
    while low <= high:
        middle = (low + high) // 2
        if trial(rungs[middle], edit.steps).holds:
            held, high = middle, middle - 1
        else:
            low = middle + 1
    if held is None:
        trial(rungs[-1], 2 * edit.steps)
    elif edit.steps > 1:
        trial(rungs[held], edit.steps // 2)
    holding = [pair for pair in found if pair[0].holds]
    best = (
        min(holding, key=lambda pair: (pair[0].drift, pair[0].negative_guidance))
        if holding
        else min(found, key=lambda pair: (pair[0].seen, pair[0].drift))
    )
    record = {
        "chosen": best[0].as_dict(),
        "tried": [one.as_dict() for one, _ in found],
        "front": [one.as_dict() for one in front([one for one, _ in found])],
    }
    pictures = judge.evals + len(found) * 2 * DRIFT_EXAMPLES
    return replace(best[1], evals=spent + pictures), record


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in both, what is still seen and drift; least drift first."""
    best = [
        one
        for one in trials
        if not any(
            (other.seen, other.drift) != (one.seen, one.drift)
            and other.seen <= one.seen
            and other.drift <= one.drift
            for other in trials
        )
    ]
    return sorted(best, key=lambda one: (one.drift, one.seen))


def draws_of(gate: Gate, spec: EditSpec) -> tuple[tuple[Draw, ...], Sampling]:
    """A trial's pictures for a gate: its prompts in turn, with seeds of the search's own."""
    prompts = list(dict.fromkeys(fill(prompt, gate.concept or "") for prompt in gate.prompts))
    draws = []
    for number in range(PICTURES):
        prompt = prompts[number % len(prompts)]
        draws.append(Draw(prompt, derive(spec.seed, "strength", prompt, number) % 2**31))
    return tuple(draws), Sampling(gate.guidance_scale, gate.steps)


def holds(seen: int, pictures: int, gate: Gate) -> bool:
    """Whether so few pictures promise that the gate will hold: at most half the rate that it allows."""
    return seen <= int(pictures * (gate.max_rate or 0.0) / 2)


def seen_in(evaluators: Sequence[Evaluator], images: Any, gate: Gate) -> int:
    """In how many pictures some evaluator sees the gate's concept."""
    import numpy as np

    flags = np.zeros(len(images), np.bool_)
    for one in evaluators:
        label = one.label_for(gate.concept or "", gate.label)
        if label is not None:
            flags |= one.shows(one.score(images), label)
    return int(flags.sum())
