"""What an evaluator is: a model that looks at pictures and scores labels, and which of them a picture shows.

Labels may carry a group, "group:name" ("object:star", "style:dotted", "flame:none"). A group is one question
with one answer, so scores are probabilities within it; labels without a group together form one. Opening
an evaluator reads its labels and loads no model: planning can ask what it is able to see.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.json_file import read_object
from editspec.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from editspec import EvaluatorRef

    Images = np.ndarray[Any, np.dtype[np.uint8]]
    Scores = np.ndarray[Any, np.dtype[np.float32]]
    Flags = np.ndarray[Any, np.dtype[np.bool_]]

BATCH = 64  # pictures scored at once
CALIBRATION = "calibration.json"
YES = "yes"  # in a group of that name ("contains-star:yes") the concept is the group's


class Evaluator(ABC):
    """One model behind one adapter. Pictures are uint8 RGB, (n, height, width, 3)."""

    adapter: ClassVar[str]
    """The adapter's name in a spec."""
    exclusive: ClassVar[bool] = True
    """Whether a group's labels exclude each other, so that the highest is the answer."""

    def __init__(self, ref: EvaluatorRef, path: Path, device: torch.device | None = None) -> None:
        self.id = ref.id
        self.threshold = ref.threshold
        self.path = path
        self.named: Mapping[str, str] = dict(ref.labels or {})
        self._device = device

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Everything it can see, in the order of its scores."""

    @abstractmethod
    def score(self, images: Images) -> Scores:
        """(n, len(labels)) in [0, 1]: probabilities within each group."""

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The files that make up the model."""

    def features(self, images: Images) -> Scores | None:
        """(n, width) of the last layer before the answer, or None for a model that gives none."""
        return None

    def label_for(self, concept: str, label: str | None = None) -> str | None:
        """The label that stands for `concept`; None where this evaluator cannot see it.

        In this order: the spec's word for it, the label itself, the one with this name in its group, the
        "yes" of a group of this name. `InputError` where several labels answer to it.
        """
        wanted = label or self.named.get(concept, concept)
        if wanted in self.labels:
            return wanted
        for matches in (
            [one for one in self.labels if _plain(wanted) in _names(one)],
            [one for one in self.labels if _plain(one) == f"{_plain(wanted)}:{YES}"],
        ):
            if len(matches) > 1:
                found = ", ".join(matches)
                raise self.refuse(f"several labels mean '{wanted}': {found}", 'give the gate a "label"')
            if matches:
                return matches[0]
        return None

    def shows(self, scores: Scores, label: str) -> Flags:
        """(n,) whether each picture shows `label`: the answer of its group, or at least the threshold."""
        column = scores[:, self.labels.index(label)]
        shown: Flags = column >= self.threshold
        if self.exclusive:
            group = [i for i, one in enumerate(self.labels) if group_of(one) == group_of(label)]
            shown = shown | (column >= scores[:, group].max(axis=1))
        return shown

    @cached_property
    def calibration(self) -> dict[str, Any] | None:
        """What is known of its errors: `calibration.json` beside the model, as it is.

        Where it has {"labels": {label: {"fnr": .., "fpr": ..}}}, reports also give corrected rates.
        """
        path = (self.path if self.path.is_dir() else self.path.parent) / CALIBRATION
        return read_object(path) if path.is_file() else None

    def error_rates(self, label: str) -> tuple[float, float] | None:
        """(false negatives, false positives) of a label as calibrated, if known."""
        known = (self.calibration or {}).get("labels")
        rates = known.get(label) if isinstance(known, dict) else None
        if not isinstance(rates, dict) or not {"fnr", "fpr"} <= rates.keys():
            return None
        values = (rates["fnr"], rates["fpr"])
        if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
            raise self.refuse(f"{CALIBRATION} gives '{label}' rates outside 0 to 1", "calibrate it again")
        return float(values[0]), float(values[1])

    @cached_property
    def digests(self) -> dict[str, str]:
        """sha256 of the model's files by name: what makes a measurement repeatable."""
        from compiler.digests import file_digests

        found = file_digests(self.files())
        return {path.name: digest for path, digest in sorted(found.items())}

    def facts(self) -> dict[str, Any]:
        """JSON facts for gates.json."""
        return {
            "id": self.id,
            "adapter": self.adapter,
            "threshold": self.threshold,
            "labels": len(self.labels),
            "files": self.digests,
            "calibration": self.calibration,
        }

    def refuse(self, what: str, remedy: str = "") -> InputError:
        """An error that names this evaluator."""
        return InputError(f"evaluator '{self.id}' ({self.path})", what, remedy)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """What a library says of a damaged model, as an error of the input."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise self.refuse(f"cannot be loaded: {error}", "check its files") from error


def group_of(label: str) -> str:
    """The group of "group:name"; "" for a label without one."""
    group, colon, _ = label.partition(":")
    return group if colon else ""


def grouped_softmax(logits: Scores, labels: Sequence[str]) -> Scores:
    """Probabilities within each group: (n, len(labels)) -> the same."""
    import numpy as np

    result = np.empty_like(logits, dtype=np.float32)
    for group in dict.fromkeys(group_of(label) for label in labels):
        columns = [i for i, label in enumerate(labels) if group_of(label) == group]
        part = logits[:, columns].astype(np.float64)
        part = np.exp(part - part.max(axis=1, keepdims=True))
        result[:, columns] = part / part.sum(axis=1, keepdims=True)
    return result


def transformers_files(evaluator: Evaluator) -> list[Path]:
    """The files of a transformers folder that decide its answers. Refuses pickles, code and gaps."""
    folder = evaluator.path
    if not folder.is_dir():
        raise evaluator.refuse("is not a folder", "give a folder as transformers' save_pretrained writes it")
    for needed in ("config.json", "preprocessor_config.json"):
        if not (folder / needed).is_file():
            raise evaluator.refuse(f"has no {needed}", "save the model and its image processor there")
    for name in ("config.json", "preprocessor_config.json"):
        if "auto_map" in read_object(folder / name):
            raise evaluator.refuse(f"{name} asks for code of its own (auto_map)", "take a model without it")
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise evaluator.refuse("has no model.safetensors", "save it with safe_serialization (no pickles)")
    return [*weights, *sorted(folder.glob("*.json")), *sorted(folder.glob("*.txt"))]


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


def _names(label: str) -> set[str]:
    """What a label is called: "object:garbage_truck", "n03417042 garbage truck, dustcart" has synonyms."""
    name = label.partition(":")[2] or label
    return {_plain(name), *(_plain(part) for part in name.split(","))}
