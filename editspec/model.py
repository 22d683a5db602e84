"""An edit spec as a frozen value: everything filled in, nothing left to look up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from editspec.canonical import digest
from editspec.edits import Edit
from editspec.errors import Diagnostic, SpecErrors
from editspec.source import Source
from editspec.templates import Kind


@dataclass(frozen=True, kw_only=True)
class PathBase:
    """A local diffusers folder, relative to the spec; "miniature" is the embedded model."""

    path: str
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubBase:
    """A Hub repository at a full commit hash."""

    repo: str
    revision: str
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """An evaluator's Hub repository at a full commit hash."""

    repo: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class Preserve:
    """What every edit keeps: concepts by name, and `auto` mined neighbours of each edited concept."""

    concepts: tuple[str, ...] = ()
    auto: int = 0


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One acceptance test. Limits it does not have are None; `prompts` may have {} for the concept.

    `steps` are those of sampling; a gate `relearned` also has those of its fine-tuning.
    """

    gate: Literal["erased", "implicit", "preserved", "neighbours", "drift", "relearned"]
    id: str
    concept: str | None = None
    label: str | None = None
    concepts: tuple[str, ...] = ()
    kind: Kind = "object"
    prompts: tuple[str, ...] = ()
    max_rate: float | None = None
    max_loss: float | None = None
    max_drift: float | None = None
    confidence: float = 0.95
    trials: int | None = None
    images: int = 32
    max_steps: int = 100
    min_steps: int = 0
    learning_rates: tuple[float, ...] = (1e-4, 1e-3)
    guidance_scale: float = 5.0
    steps: int = 25


@dataclass(frozen=True, kw_only=True)
class EvaluatorRef:
    """A classifier that judges images: where it is, how it is called, what it calls the spec's concepts."""

    id: str
    model: str | HubModel
    adapter: Literal["image-classification", "zero-shot-image-classification", "onnx-detector"] = (
        "image-classification"
    )
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Publish:
    """What the model card says."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    accept_licenses: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EditSpec:
    """A checked spec. `document` is its JSON with every default filled in; it alone decides the digest."""

    name: str
    base: PathBase | HubBase
    edits: tuple[Edit, ...]
    seed: int = 0
    preserve: Preserve = Preserve()
    gates: tuple[Gate, ...] = ()
    evaluators: tuple[EvaluatorRef, ...] = ()
    publish: Publish = Publish()
    document: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)
    source: Source | None = field(default=None, compare=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return digest(self.document)

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the spec start from."""
        return Path(self.source.file).resolve().parent if self.source is not None else Path.cwd()

    def edit(self, id: str) -> Edit:
        """The edit with this id; KeyError if there is none."""
        for edit in self.edits:
            if edit.id == id:
                return edit
        raise KeyError(id)

    def pointer(self, part: Edit | Gate) -> str:
        """The JSON pointer of an edit or gate of this spec."""
        return (
            f"/gates/{self.gates.index(part)}"
            if isinstance(part, Gate)
            else f"/edits/{self.edits.index(part)}"
        )

    def errors(self, findings: Iterable[tuple[str, str] | tuple[str, str, str]]) -> SpecErrors:
        """Findings (pointer, message[, remedy]) that took more than the text, shown at their place in it."""
        source = self.source or Source(self.name, "")
        found: list[Diagnostic] = [source.diagnostic(*finding) for finding in findings]
        return SpecErrors(found)
