"""What an artifact says of itself, held against itself: its records must tell one story."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from compiler.artifact import (
    AFTERWARDS,
    CARD,
    DELTAS,
    EDITS,
    GATES,
    LOCK,
    PLAN,
    PROVENANCE,
    SPEC,
    Artifact,
)
from compiler.checkpoint import UNET, Checkpoint, listing_digest
from compiler.safetensors_file import METADATA, read_header, read_metadata
from editspec.canonical import digest
from editspec.errors import InputError

#: Kinds of files that provenance/ may hold beside the known ones: for people and for other tools.
SUFFIXES = frozenset((".json", ".jsonl", ".png", ".html", ".safetensors"))

Disagreement = tuple[str, str]  # file, what is wrong with it


def disagreements(records: Mapping[str, Any], digests: Mapping[str, str]) -> Iterator[Disagreement]:
    """What the records (SPEC, LOCK, PLAN, EDITS, GATES) say against each other or against the base's digests.

    `KeyError`, `TypeError` or `AttributeError` for records that Excise did not write.
    """
    spec, lock, plan, edits, gates = (records[name] for name in (SPEC, LOCK, PLAN, EDITS, GATES))
    base = lock["base"]
    facts: tuple[tuple[str, str, Any, Any], ...] = (
        (SPEC, "is not the spec that the lock pins", digest(spec), lock["spec"]),
        (
            SPEC,
            "names another base than the lock",
            spec["base"],
            {key: base.get(key) for key in spec["base"]},
        ),
        (LOCK, "pins a seed that is not the spec's", lock["seed"], str(spec["seed"])),
        (
            LOCK,
            "gives the base's files other digests than the base",
            listing_digest(base["files"]),
            base["digest"],
        ),
        (PLAN, "is the plan of another spec", plan["spec"], lock["spec"]),
        (PLAN, "is a plan for another base", plan["base"], base["digest"]),
        (PLAN, "was made with other libraries", plan["libraries"], lock["libraries"]),
        (PLAN, "was made for another class of machine", plan["device"], lock["device"]["class"]),
        (EDITS, "records other edits than the spec has", _run_edits(edits), _ids(spec["edits"])),
        (EDITS, "records other passes than were planned", _passes(edits), _passes(plan)),
        (GATES, "measured another base", gates["base"], base["digest"]),
        (GATES, "measured another checkpoint than this one", gates["edited"], listing_digest(digests)),
        (GATES, "has other gates than the spec", _ids(gates["gates"]), _ids(spec["gates"])),
        (GATES, "has other gates than were planned", _ids(gates["gates"]), _ids(plan["gates"])),
    )
    yield from ((name, what) for name, what, one, other in facts if one != other)


def failed_gates(gates: Mapping[str, Any]) -> Iterator[Disagreement]:
    """The gates that did not hold: such an artifact was rejected."""
    failed = [gate["id"] for gate in gates["gates"] if gate["passed"] is not True]
    yield from ((GATES, f"says that gate '{name}' failed: this build was rejected") for name in failed)
    if not failed and gates["passed"] is not True:
        yield GATES, "says that the build was rejected"


def misplaced(names: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[Disagreement]:
    """Files that no artifact has, whether or not the manifest lists them."""
    own = {*checkpoint.files(), CARD, *AFTERWARDS}
    for name in names:
        path = PurePosixPath(name)
        if name not in own and not (str(path.parent) == PROVENANCE and path.suffix in SUFFIXES):
            yield name, "does not belong into an artifact"


def doubtful_weights(artifact: Artifact, names: Mapping[str, Any]) -> Iterator[Disagreement]:
    """Weight files whose header could be read in two ways, or says more than it should."""
    for name in names:
        if name.endswith(".safetensors"):
            try:
                metadata = read_metadata(artifact.path(name))
            except InputError as error:
                yield name, error.what
            else:
                if metadata != METADATA:
                    yield name, "has other metadata than Excise writes"


def stray_deltas(
    artifact: Artifact, edits: Mapping[str, Any], checkpoint: Checkpoint
) -> Iterator[Disagreement]:
    """Whether the recorded change is one of this U-Net, of as many tensors as the record says."""
    entries = checkpoint.weights(UNET).entries
    deltas = read_header(artifact.path(DELTAS))[0]
    for name, delta in deltas.items():
        if name not in entries or entries[name].shape != delta.shape or delta.dtype != "F32":
            yield DELTAS, f"has a change that does not fit the U-Net: {name}"
    if len(deltas) != edits["tensors"]["changed"]:
        yield EDITS, "counts other changed tensors than there are changes"


def _ids(parts: list[Mapping[str, Any]]) -> list[str]:
    return sorted(part["id"] for part in parts)


def _run_edits(edits: Mapping[str, Any]) -> list[str]:
    return sorted({name for run in edits["passes"] for name in run["edits"]})


def _passes(record: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(run["pass"], run["version"], run["edits"], run["key"]) for run in record["passes"]]
