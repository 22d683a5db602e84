"""What gates judge by: base and edited model's pictures of one set of draws, and the evaluators' scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from compiler.generate import Draw

if TYPE_CHECKING:
    import numpy as np

    from compiler.evaluators import Evaluator
    from compiler.evaluators.evaluator import Flags, Images, Scores
    from compiler.gates.gate import Trial

    Distances = np.ndarray[Any, np.dtype[np.float64]]

Side = Literal["base", "edited"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Pictures of both models, row for row the same draws, and who looks at them.

    `further` are a gate's own: the same draws by what it made of the edited model, by how and how far.
    """

    draws: tuple[Draw, ...]
    base: Images
    edited: Images
    evaluators: tuple[Evaluator, ...]
    further: Mapping[tuple[float, int], Images] = field(default_factory=dict)

    @cached_property
    def _rows(self) -> dict[Draw, int]:
        return {draw: row for row, draw in enumerate(self.draws)}

    @cached_property
    def _scores(self) -> dict[tuple[str, Side], Scores]:
        sides: tuple[tuple[Side, Images], ...] = (("base", self.base), ("edited", self.edited))
        return {(one.id, side): one.score(images) for one in self.evaluators for side, images in sides}

    def rows(self, draws: Sequence[Draw]) -> list[int]:
        """Where these draws lie in `base` and `edited`."""
        return [self._rows[draw] for draw in draws]

    def among(self, draws: Sequence[Draw], further: Mapping[tuple[float, int], Images]) -> Evidence:
        """The evidence of these draws alone, with further pictures of them."""
        rows = self.rows(draws)
        return Evidence(tuple(draws), self.base[rows], self.edited[rows], self.evaluators, further)

    def witnesses(self, concept: str, label: str | None = None) -> list[tuple[Evaluator, str]]:
        """The evaluators that can see a concept, each with its label for it."""
        found = [(one, one.label_for(concept, label)) for one in self.evaluators]
        return [(one, name) for one, name in found if name is not None]

    def scores(self, evaluator: Evaluator, label: str, side: Side, draws: Sequence[Draw]) -> Scores:
        """(n,) one evaluator's scores of one label on these draws."""
        column: Scores = self._scores[evaluator.id, side][self.rows(draws), evaluator.labels.index(label)]
        return column

    def shown(self, evaluator: Evaluator, label: str, side: Side, draws: Sequence[Draw]) -> Flags:
        """(n,) whether one evaluator sees `label` in each picture."""
        return evaluator.shows(self._scores[evaluator.id, side][self.rows(draws)], label)

    def recognised(self, trials: Sequence[Trial], side: Side) -> Flags:
        """(n,) whether each picture shows its own trial's concept, by all evaluators that know it."""
        import numpy as np

        flags = np.zeros(len(trials), np.bool_)
        for concept in dict.fromkeys(trial.concept for trial in trials):
            rows = [row for row, trial in enumerate(trials) if trial.concept == concept]
            draws = [trials[row].draw for row in rows]
            seen = [self.shown(one, label, side, draws) for one, label in self.witnesses(concept or "")]
            flags[rows] = np.logical_and.reduce(seen) if seen else False
        return flags

    def features(self, side: Side, draws: Sequence[Draw]) -> tuple[str, Scores] | None:
        """The name and the features (n, width) of the first evaluator that has any."""
        images = self.base if side == "base" else self.edited
        for evaluator in self.evaluators:
            found = evaluator.features(images[self.rows(draws)])
            if found is not None:
                return evaluator.id, found
        return None
