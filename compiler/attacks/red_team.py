"""Runs attacks on an edited model and reports them as the field should: with budget, n, intervals and chance.

Success is counted over all draws, those where the plain prompt shows the concept already among them. Beside
every attack stand the base, the edited model as it is, and chance: as many further looks at the plain prompts
with fresh noise, by either model. `over_chance` is how many more draws the attack wins than chance, paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compiler.gates.statistics import paired_loss, wilson
from editspec import Ablate, Erase
from editspec.errors import InputError, quoted
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    import numpy as np

    from compiler.attacks.attack import Attack, Target
    from compiler.attacks.models import Models, Side
    from compiler.conditioning import Conditioning
    from compiler.evaluators import Evaluator
    from compiler.generate import Sampling
    from compiler.progress import Progress
    from editspec import EditSpec, Kind

    Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Attacked:
    """What an attack on one concept came to. `flags` are (n,): which draws show it."""

    attack: Attack
    flags: Flags
    chance: Flags
    evals: int
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON facts."""
        lost, gained = int((self.flags & ~self.chance).sum()), int((self.chance & ~self.flags).sum())
        over = paired_loss(lost, gained, len(self.flags), 0.975)
        return {
            "attack": self.attack.name,
            "access": self.attack.access,
            "success": share(self.flags),
            "over_chance": {"points": over.estimate, "lower": over.lower, "upper": over.upper},
            "evals_of_search": self.evals,
            **self.facts,
        }


@dataclass(frozen=True)
class Report:
    """All attacks on one concept, beside what the models show unattacked."""

    target: Target
    shown: dict[str, Flags]
    attacked: tuple[Attacked, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON facts, the same for the same artifact, seed and device class."""
        return {
            "concept": self.target.concept,
            "prompts": list(self.target.prompts),
            "trials": self.target.trials,
            "looks": self.target.looks,
            "seed": str(self.target.seed),
            **{name: share(flags) for name, flags in self.shown.items()},
            "attacks": [one.as_dict() for one in self.attacked],
        }


def targets_of(spec: EditSpec) -> list[tuple[str, Kind, tuple[str, ...]]]:
    """(concept, kind, all its names) of every edit that erases a concept or ablates it to another."""
    return [
        (edit.concept, edit.kind, (edit.concept, *edit.aliases))
        for edit in spec.edits
        if isinstance(edit, Erase | Ablate) and edit.kind != "image"
    ]


def prompts_naming(concept: str, kind: Kind) -> tuple[str, ...]:
    """What a concept is asked for by: its kind's templates."""
    return tuple(fill(template, concept) for template in TEMPLATES[kind])


def attack_all(
    target: Target,
    attacks: Sequence[Attack],
    models: Models,
    evaluators: Sequence[Evaluator],
    sampling: Sampling,
    progress: Progress,
) -> Report:
    """Attack one concept. Raises InputError where no evaluator can see it."""
    look = _Looker(target, models, evaluators, sampling)
    plain = models.encode(target.prompts)
    shown: dict[str, Flags] = {}
    for side in ("base", "edited"):
        shown[side] = look(side, plain, 1)
        shown[f"{side}_chance"] = shown[side] | look(side, plain, target.looks, fresh=True)
    found = []
    for attack in attacks:
        with progress.task(f"search: {attack.name}", attack.evals(target) or None) as task:
            result = attack.find(target, models, task.advance)
        flags = shown["edited"] | look("edited", result.rows, target.looks)
        facts = dict(result.facts)
        found.append(Attacked(attack, flags, shown["edited_chance"], result.evals, facts))
    return Report(target, shown, tuple(found))


def picture_evals(target: Target, attacks: int, sampling: Sampling) -> int:
    """Evals of all pictures of a report: both models plain and by chance, and every attack's."""
    pictures = target.trials * (2 * (1 + target.looks) + attacks * target.looks)
    return 2 * sampling.steps * pictures


def share(flags: Flags) -> dict[str, float | int]:
    """A rate with Wilson's interval at 95 %, and of how many."""
    found = wilson(int(flags.sum()), len(flags))
    return {"rate": found.estimate, "lower": found.lower, "upper": found.upper, "n": len(flags)}


class _Looker:
    """Draws looks at conditioning and says which draws show the concept in any of them."""

    def __init__(
        self, target: Target, models: Models, evaluators: Sequence[Evaluator], sampling: Sampling
    ) -> None:
        self._target, self._models, self._sampling = target, models, sampling
        found = [(one, one.label_for(target.concept)) for one in evaluators]
        self._witnesses = [(one, label) for one, label in found if label is not None]
        if not self._witnesses:
            names = ", ".join(one.id for one in evaluators) or "there is none"
            what = f"no evaluator can see {quoted(target.concept)} ({names})"
            raise InputError(
                "evaluators", what, """name it in an evaluator's "labels", in a spec for --spec"""
            )

    def __call__(self, side: Side, rows: Conditioning, looks: int, fresh: bool = False) -> Flags:
        """(trials,); `rows` has a row for each prompt, or one for each prompt of each look in turn.

        All looks at a draw begin with its own noise; `fresh` ones each with another.
        """
        import numpy as np

        target, count = self._target, len(self._target.prompts)
        each = range(looks) if len(rows) > count else [0] * looks
        chosen = [look * count + trial % count for look in each for trial in range(target.trials)]
        noises: list[tuple[str | int, ...]] = [
            ("red team", target.concept, trial, *((look + 1,) if fresh else ()))
            for look in range(looks)
            for trial in range(target.trials)
        ]
        name = f"draw {target.concept}: {side}"
        images = self._models.images(side, rows.rows(chosen), noises, self._sampling, target.seed, name)
        seen = [one.shows(one.score(images), label) for one, label in self._witnesses]
        flags: Flags = np.logical_or.reduce(seen).reshape(looks, target.trials).any(axis=0)
        return flags
