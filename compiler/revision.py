"""Builds another build out of a finished one: without one of its edits, or on another base.

An artifact keeps what every run of a pass changed. A kept run is not computed again: its change is taken as
recorded and goes through the same pipeline as a computed one, to be linked, recorded and measured anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.artifact import DELTAS, EDITS, PARTS, SPEC, Artifact
from compiler.cache import StageCache
from compiler.passes import EditPass, PassContext, PassCost, PassResult, discover
from compiler.safetensors_file import TensorEntry, read_header, read_tensor
from editspec import parse_spec
from editspec.defaults import words_of
from editspec.errors import InputError, did_you_mean, quoted
from editspec.semantics.walk import names

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.checkpoint import Checkpoint
    from editspec import Edit, EditSpec


@dataclass(frozen=True)
class Revision:
    """What to compile instead: a spec, the passes that do it, and which edits keep their recorded change.

    `kept` and `solved` hold the ids of each run's edits; `passes` is None where all is compiled afresh.
    """

    spec: EditSpec
    passes: tuple[EditPass, ...] | None
    kept: tuple[tuple[str, ...], ...]
    solved: tuple[tuple[str, ...], ...]

    def with_spec(self, spec: EditSpec) -> Revision:
        """The same with another spec of the same edits."""
        return replace(self, spec=spec)


@dataclass(frozen=True)
class RecordedRun:
    """One run of a pass in a finished build: entry `number` of its edits.json."""

    artifact: Artifact
    number: int
    entry: Mapping[str, Any]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of its edits."""
        return tuple(self.entry["edits"])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that it moved, with their shapes."""
        return {tensor["tensor"]: tuple(tensor["shape"]) for tensor in self.entry["tensors"]}

    @property
    def digest(self) -> str:
        """One sha256 over its change: files and place."""
        files = [name for name in (DELTAS, PARTS) if self.artifact.path(name).is_file()]
        return StageCache.key([self.number, *(self.artifact.sha256(name) for name in files)])

    def deltas(self) -> dict[str, Tensor]:
        """Its own change, fp32 by U-Net name. `InputError` where the artifact lacks or contradicts it."""
        totals = _Stored.of(self.artifact.path(DELTAS))
        parts = _Stored.of(self.artifact.path(PARTS))
        runs = self.artifact.read(EDITS)["passes"]
        tensors = [{tensor["tensor"] for tensor in run["tensors"]} for run in runs]
        found = {}
        for name, shape in self.shapes.items():
            movers = [number for number, theirs in enumerate(tensors) if name in theirs]
            delta = totals.get(name) if len(movers) == 1 else _part(self, name, movers, totals, parts)
            if delta is None or tuple(delta.shape) != shape:
                what = f"has no change of run {self.number} on {name} of shape {shape}"
                raise InputError(str(self.artifact.folder), what, "compile it again")
            found[name] = delta
        return found


class _Stored(Mapping[str, "Tensor"]):
    """The tensors of a file, read one by one: all edits of a large model together may not fit into memory."""

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self._entries = entries

    @classmethod
    def of(cls, path: Path) -> _Stored:
        """Those of this file; none where there is no such file."""
        return cls(read_header(path)[0] if path.is_file() else {})

    def __getitem__(self, name: str) -> Tensor:
        return read_tensor(self._entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _part(
    run: RecordedRun,
    name: str,
    movers: Sequence[int],
    totals: Mapping[str, Tensor],
    parts: Mapping[str, Tensor],
) -> Tensor | None:
    """One run's share of a tensor that several runs moved; all must add up to the total, bit by bit."""
    import torch

    shares = [parts[key] for key in (f"{number}.{name}" for number in movers) if key in parts]
    if name not in totals or len(shares) != len(movers):
        return None
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    if not torch.equal(total, totals[name]):
        what = f"the parts of {name} do not add up to its total change"
        raise InputError(str(run.artifact.path(PARTS)), what, "compile the artifact again")
    return shares[movers.index(run.number)]


class Recorded(EditPass):
    """Gives the change that a finished build recorded; `_keeping` makes a subclass for each run."""

    merges: ClassVar[bool] = True  # the run's own edits, all at once
    run_kept: ClassVar[RecordedRun]

    def accepts(self, edit: Edit) -> bool:
        return edit.id in self.run_kept.ids

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        entries = checkpoint.weights("unet").entries
        for name, shape in self.run_kept.shapes.items():
            if name not in entries or entries[name].shape != shape:
                found = f"{entries[name].shape} here" if name in entries else "not in this base"
                reason = f"its recorded change moves {name} {shape}, which is {found}"
                return [(spec.pointer(edit), reason) for edit in edits]
        return []

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        """The change itself: so no compile ever takes a kept run from the cache for a computed one."""
        return {"recorded": self.run_kept.digest}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return tuple(self.run_kept.shapes)

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        entries = checkpoint.weights("unet").entries
        return PassCost(0, 1.0, 8 * sum(entries[name].parameters for name in self.run_kept.shapes))

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        record = {**self.run_kept.entry["record"], "kept_from": self.run_kept.entry["key"]}
        return PassResult(self.run_kept.deltas(), record)


def without(artifact: Artifact, id: str) -> Revision:
    """The build without one edit: every other run keeps its change, bit by bit.

    Where the edit was solved together with others, that run is solved again for those. Gates that judge what
    is no longer edited go with it. `InputError` for an unknown or an only edit.
    """
    document, runs = artifact.read(SPEC), recorded_runs(artifact)
    ids = [edit["id"] for edit in document["edits"]]
    if id not in ids:
        raise InputError(id, "is no edit of this build", did_you_mean(id, ids, "its edits"))
    edits = [edit for edit in document["edits"] if edit["id"] != id]
    if not edits:
        raise InputError(id, "is the only edit of this build", "what is left without it is the base")
    words = [word for edit in edits for word in words_of(edit)]
    gates = [gate for gate in document["gates"] if _still_judges(gate, words)]
    spec = _spec({**document, "edits": edits, "gates": gates})
    left = [run for run in runs if run.ids != (id,)]
    return _revision(spec, left, keep=lambda run: id not in run.ids)


def moved(artifact: Artifact, base: Mapping[str, Any], *, carry: bool) -> Revision:
    """The build on another base, `base` as in a spec: everything is compiled afresh.

    With `carry`, distilled edits bring their recorded change along instead of being trained again; what is
    solved in closed form is solved on the new base all the same.
    """
    spec = _spec({**artifact.read(SPEC), "base": dict(base)})
    runs = recorded_runs(artifact)
    if not carry:
        return Revision(spec, None, (), tuple(run.ids for run in runs))
    return _revision(spec, runs, keep=lambda run: run.entry["evals"] > 0 or _was_kept(run))


def recorded_runs(artifact: Artifact) -> list[RecordedRun]:
    """All runs of a finished build, in their order. `InputError` where its record is damaged."""
    record = artifact.read(EDITS)
    try:
        runs = [RecordedRun(artifact, number, entry) for number, entry in enumerate(record["passes"])]
        for run in runs:
            _ = run.ids, run.shapes, run.entry["pass"], run.entry["version"], run.entry["evals"]
            _ = run.entry["key"], run.entry["record"]
    except (KeyError, TypeError) as error:
        raise InputError(str(artifact.path(EDITS)), f"lacks {error}", "compile the artifact again") from error
    return runs


def _revision(
    spec: EditSpec, runs: Sequence[RecordedRun], *, keep: Callable[[RecordedRun], bool]
) -> Revision:
    left = {edit.id for edit in spec.edits}
    passes: list[EditPass] = []
    kept, solved = [], []
    for place, run in enumerate(runs):
        ids = tuple(id for id in run.ids if id in left)
        if keep(run):
            passes.append(_keeping(run, place))
            kept.append(ids)
        else:
            passes.append(_solving(run, place))
            solved.append(ids)
    return Revision(spec, tuple(passes), tuple(kept), tuple(solved))


def _keeping(run: RecordedRun, place: int) -> EditPass:
    facts = {"name": run.entry["pass"], "version": run.entry["version"], "order": place, "run_kept": run}
    made: EditPass = type("Recorded", (Recorded,), facts)()
    return made


def _solving(run: RecordedRun, place: int) -> EditPass:
    """The engine of a run, at the run's place among the others and for its edits alone."""
    engines = {engine.name: engine for engine in discover()}
    engine = engines.get(run.entry["pass"])
    if engine is None:
        what = f"this version has no engine {quoted(run.entry['pass'])}"
        raise InputError(", ".join(run.ids), what, "use the version that compiled it")
    accepts = lambda self, edit: edit.id in run.ids  # noqa: E731
    made: EditPass = type("Solved", (type(engine),), {"order": place, "accepts": accepts})()
    return made


def _was_kept(run: RecordedRun) -> bool:
    """A change that this build itself had taken over; its evals are counted where it was computed."""
    return "kept_from" in run.entry["record"]


def _still_judges(gate: Mapping[str, Any], words: Sequence[str]) -> bool:
    """Whether something is still edited that this gate is about."""
    concept = gate.get("concept")
    if concept is not None:
        return any(names(word, concept) for word in words)
    return gate["gate"] != "neighbours" or bool(gate.get("concepts")) or bool(words)


def _spec(document: Mapping[str, Any]) -> EditSpec:
    """The changed document, checked as any other; relative paths in it start at the current folder."""
    return parse_spec(json.dumps(document, indent=2, ensure_ascii=False), "editspec.json")
