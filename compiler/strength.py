"""`strength: "auto"`: the least drift at which the gates on a concept hold, searched on one bank.

A larger negative guidance erases more and harms more (ESD, section 5.4: eta 1, 3, 10 remove 83, 88, 92 % of
nudity at a cost of 7, 14, 34 % of other objects' accuracy). Settings are trained on one cached bank, each but
the first from the nearest one before it (compiler.sweep), and judged in a few pictures, drawn with seeds that
the gates do not use. Erasure grows with eta, so the search bisects a ladder of etas and trains longer where
it ended. Of settings that look well in few pictures the mildest is the likeliest to have been lucky: it must
look as well in more of them, else the next is taken, and then the ladder's next rung. Where the concept goes
and takes others along, as the spec's gates `preserved` and `neighbours` see it, training goes on from the
least harmful setting with twice the weight on what is kept: a mean drift cannot see that a neighbour is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.few_pictures import gates_beside, gates_on
from editspec import Erase

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compiler.distil import Distilled
    from compiler.esd import Lesson
    from compiler.judging import Judge
    from compiler.passes import PassContext
    from editspec import EditSpec

LADDER = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)  # times as far from the concept as the edit's own target
TRIALS = 6  # at most; three find a place among six rungs
CONTINUED = 3  # a setting that goes on from another's weights takes a third of the steps
PICTURES = 20  # of each gate in a trial
CONFIRMING = 60  # of each gate before a setting is chosen, at least
MOST_CONFIRMING = 200
MOST_ETA = 100.0  # as in the schema
DRIFT_EXAMPLES = 64  # at most, of each of the two keep terms, to tell how far a setting drifts


@dataclass(frozen=True)
class Trial:
    """One setting: what it erased in `pictures` pictures, and how far what should stay drifted.

    `steps` are those of its whole training, with those of the setting that it went on from. `keep` multiplies
    the edit's own weight on what is kept. `gone` promises that the gates on the concept hold; `lost` of the
    `beside` pictures of what the spec's other gates watch were recognised with the base alone.
    """

    negative_guidance: float
    steps: int
    seen: int
    pictures: int
    drift: float
    gone: bool
    keep: float = 1.0
    lost: int = 0
    beside: int = 0
    stays: bool = True

    @property
    def holds(self) -> bool:
        """Whether every gate promises to hold."""
        return self.gone and self.stays

    @property
    def loss(self) -> float:
        """The share of pictures of other things that are no longer recognised; 0 where none was looked at."""
        return self.lost / self.beside if self.beside else 0.0

    @property
    def rate(self) -> float:
        """The share of its pictures in which the concept is still seen."""
        return self.seen / self.pictures

    def as_dict(self) -> dict[str, Any]:
        """JSON facts for edits.json."""
        return {
            "negative_guidance": self.negative_guidance,
            "steps": self.steps,
            "rate": round(self.rate, 4),
            "pictures": self.pictures,
            "drift": float(f"{self.drift:.4g}"),
            **({"loss": round(self.loss, 4), "beside": self.beside} if self.beside else {}),
            **({"keep": self.keep} if self.keep != 1 else {}),
            "holds": self.holds,
        }


def strength_problems(edit: Erase, spec: EditSpec) -> list[tuple[str, str]]:
    """Why no strength can be searched: (JSON pointer, message) pairs."""
    if gates_on(edit, spec):
        return []
    message = f"'auto' needs a gate 'erased' or 'implicit' on '{edit.concept}' that says when it is gone"
    return [(f"{spec.pointer(edit)}/strength", message)]


def strength_reads(edit: Erase, spec: EditSpec) -> Any:
    """What the search depends on beside the edit: its gates and who judges them. JSON."""
    from compiler.evaluators import open_evaluators

    places = [spec.gates.index(gate) for gate in (*gates_on(edit, spec), *gates_beside(spec))]
    evaluators = open_evaluators(spec, spec.folder)
    return {
        "gates": [spec.document["gates"][place] for place in places],
        "confirming": confirming(edit, spec),
        "evaluators": [[one.id, one.threshold, dict(one.named), one.digests] for one in evaluators],
    }


def reach(edit: Erase) -> float:
    """How many times e_c - e_0 the edit's target lies from what the base predicts for the concept."""
    return edit.negative_guidance + (0.0 if edit.from_concept else 1.0)


def ladder(edit: Erase) -> tuple[float, ...]:
    """The etas to search among, ascending, each once."""
    own = reach(edit)
    etas = (factor * own - (own - edit.negative_guidance) for factor in LADDER)
    return tuple(dict.fromkeys(round(min(MOST_ETA, max(0.0, eta)), 4) for eta in etas))


def continued_steps(steps: int) -> int:
    """The steps of a setting that goes on from another one's weights."""
    return -(-steps // CONTINUED)


def searching_steps(edit: Erase) -> list[int]:
    """The training steps of every trial, at most: one whole, one as long again, the others continued."""
    return [edit.steps, edit.steps] + [continued_steps(edit.steps)] * (TRIALS - 2)


def confirming(edit: Erase, spec: EditSpec) -> int:
    """Pictures of each gate before a setting is chosen: by the rule of three, so that none seen proves it.

    Of several settings the luckiest is chosen: with fewer pictures it would often be worse than it looked.
    """
    least = min((gate.max_rate or 1.0 for gate in gates_on(edit, spec)), default=1.0)
    return min(MOST_CONFIRMING, max(CONFIRMING, math.ceil(3 / least)))


def judging_evals(edit: Erase, spec: EditSpec) -> int:
    """Evals of judging every trial, at most: pictures, and predictions that tell the drift."""
    count = confirming(edit, spec)
    pictures = sum(2 * count * gate.steps for gate in gates_on(edit, spec))
    beside = sum(2 * count * gate.steps for gate in gates_beside(spec))
    return TRIALS * (pictures + beside + 2 * DRIFT_EXAMPLES) + beside  # and the base's own, once


def search(
    learnt: Lesson, student: nn.Module, names: Sequence[str], context: PassContext, evals: int
) -> tuple[Distilled, dict[str, Any]]:
    """The setting of least drift at which the gates hold; else the one that erased most. With its record.

    `student` is base plus upstream, and ends so. The record lists every setting that was tried.
    """
    from compiler.esd import drift
    from compiler.judging import Judge, changed
    from compiler.sweep import Sweep

    (edit,) = learnt.edits
    judge = Judge(context, gates_on(edit, context.spec), gates_beside(context.spec))
    sweep = Sweep(learnt, student, names, context, evals)
    trials: list[Trial] = []

    def tried(eta: float, longer: int = 0, keep: float = 1.0, after: int | None = None) -> bool:
        setting = sweep.train(eta, longer, keep, after)
        with changed(student, setting.deltas):
            moved = drift(student, learnt)
        seen, pictures, gone = judge(setting.deltas, range(PICTURES))
        one = Trial(eta, setting.steps, seen, pictures, moved, gone, keep)
        trials.append(_beside(one, judge, setting.deltas, range(PICTURES)))
        return gone

    def confirmed(number: int) -> bool:
        deltas, fresh = sweep.settings[number].deltas, range(PICTURES, confirming(edit, context.spec))
        seen, pictures, gone = judge(deltas, fresh)
        first = trials[number]
        one = replace(first, seen=first.seen + seen, pictures=first.pictures + pictures, gone=gone)
        trials[number] = _beside(one, judge, deltas, fresh)
        return trials[number].holds

    rungs = ladder(edit)
    place = least(rungs, tried)
    tried(rungs[-1 if place is None else place], edit.steps if place is None else continued_steps(edit.steps))
    chosen = next(filter(confirmed, mildest(trials)), None)
    while chosen is None and len(trials) < TRIALS:
        least_harm = min((n for n, one in enumerate(trials) if one.gone), key=_harm(trials), default=None)
        if least_harm is not None:
            one = trials[least_harm]
            tried(one.negative_guidance, continued_steps(edit.steps), 2 * one.keep, least_harm)
        elif higher := [rung for rung in rungs if rung > max(one.negative_guidance for one in trials)]:
            tried(higher[0])
        else:
            break
        chosen = next(filter(confirmed, mildest(trials)), None)
    if chosen is None:
        chosen = min(range(len(trials)), key=_harm(trials))
    record = {
        "chosen": trials[chosen].as_dict(),
        "tried": [one.as_dict() for one in trials],
        "front": [one.as_dict() for one in front(trials)],
    }
    spent = sweep.evals + judge.evals + len(trials) * 2 * DRIFT_EXAMPLES
    return replace(sweep.settings[chosen].done, evals=spent), record


def _beside(one: Trial, judge: Judge, deltas: Mapping[str, Tensor], numbers: range) -> Trial:
    """The trial with what it loses beside the concept, in pictures with these numbers; not if that stays."""
    if not one.gone:
        return one
    lost, pictures, stays = judge.losses(deltas, numbers)
    return replace(one, lost=one.lost + lost, beside=one.beside + pictures, stays=stays)


def _harm(trials: Sequence[Trial]) -> Callable[[int], tuple[Any, ...]]:
    """How bad a trial is, by its number, where none holds: what is still seen, then what else is lost."""

    def key(number: int) -> tuple[Any, ...]:
        one = trials[number]
        return (0.0 if one.gone else one.rate, not one.gone, one.loss, one.drift)

    return key


def least(rungs: Sequence[float], holds_at: Callable[[float], bool]) -> int | None:
    """The place of the least rung that holds, by bisection; None where the last one tried does not."""
    found: int | None = None
    low, high = 0, len(rungs) - 1
    while low <= high:
        middle = (low + high) // 2
        if holds_at(rungs[middle]):
            found, high = middle, middle - 1
        else:
            low = middle + 1
    return found


def mildest(trials: Sequence[Trial]) -> list[int]:
    """The numbers of the trials that hold, those of least drift first."""
    holding = [number for number, one in enumerate(trials) if one.holds]
    return sorted(holding, key=lambda number: (trials[number].drift, trials[number].negative_guidance))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in both, what is still seen and drift; least drift first."""
    best = [
        one
        for one in trials
        if not any(
            (other.rate, other.drift) != (one.rate, one.drift)
            and other.rate <= one.rate
            and other.drift <= one.drift
            for other in trials
        )
    ]
    return sorted(best, key=lambda one: (one.drift, one.rate))
