"""Both oracles' answers about a stack of pictures, one name per label group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from excise.miniature.assets import EVALUATORS, evaluator_folder

if TYPE_CHECKING:
    from compiler.evaluators import Evaluator


def oracles() -> tuple[Evaluator, ...]:
    """The two oracles behind the product's ordinary adapter."""
    from compiler.evaluators.image_classification import ImageClassification
    from editspec import EvaluatorRef

    refs = [EvaluatorRef(id=name, model=str(evaluator_folder(name))) for name in EVALUATORS]
    return tuple(ImageClassification(ref, evaluator_folder(ref.id)) for ref in refs)


def answers(evaluator: Evaluator, images: np.ndarray) -> dict[str, np.ndarray]:
    """Label group -> the name that the oracle finds likeliest, for each picture."""
    scores = evaluator.score(images)
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(evaluator.labels):
        groups.setdefault(label.split(":")[0], []).append(index)
    names = np.array([label.split(":")[1] for label in evaluator.labels])
    return {group: names[columns][scores[:, columns].argmax(1)] for group, columns in groups.items()}


class Verdicts:
    """What the oracles agree on: `shows` asks both, `flags` is satisfied with either."""

    def __init__(self, images: np.ndarray, evaluators: tuple[Evaluator, ...] | None = None) -> None:
        self.by_oracle = [answers(e, images) for e in (evaluators or oracles())]

    def shows(self, group: str, names: np.ndarray | str) -> np.ndarray:
        """Per picture: every oracle answers `names` in this group."""
        return np.asarray(np.logical_and.reduce([a[group] == names for a in self.by_oracle]))

    def flags(self, group: str, names: np.ndarray | str) -> np.ndarray:
        """Per picture: at least one oracle answers `names` in this group."""
        return np.asarray(np.logical_or.reduce([a[group] == names for a in self.by_oracle]))
