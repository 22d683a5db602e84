"""What a folder is, for the registry: its files by digest, what it was built from, how its gates went."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.artifact import AFTERWARDS, GATES, LOCK, MANIFEST, SPEC, Artifact, is_artifact
from compiler.checkpoint import Checkpoint, listing_digest
from compiler.digests import file_digest
from editspec.errors import GateFailed, InputError
from exporters.manifest import read_manifest
from exporters.verify import verify_artifact

ARTIFACT, BASE = "artifact", "base"


@dataclass(frozen=True)
class StoredFile:
    """One file of a build: relative path with forward slashes, size in bytes, sha256 (hex)."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """A build before it is stored. Digests are sha256 in hex, "" where there is none.

    `build` names all files but a signature, `checkpoint` those that diffusers loads (what another build's
    `base` refers to);
    `relation` is undo or rebase where `origin`, another build, was changed into this one.
    """

    build: str
    kind: str
    name: str
    checkpoint: str
    base: str
    spec: str
    family: str
    passed: bool
    relation: str
    origin: str
    files: tuple[StoredFile, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def describe(folder: Path, name: str | None = None) -> Description:
    """Look at an artifact of Excise, or at a plain checkpoint (a base), called `name` or as its folder is.

    Raises `InputError` for another kind of folder, `GateFailed` for an artifact that does not verify; that a
    gate failed is no hindrance here.
    """
    if not is_artifact(folder):
        return _base(folder, name)
    report = verify_artifact(folder)
    if wrong := [finding for finding in report.findings if finding.check != "gates"]:
        raise GateFailed("\n  ".join([f"{folder} does not verify:", *map(str, wrong[:10])]))
    artifact = Artifact(folder)
    lock, spec, gates = artifact.read(LOCK), artifact.read(SPEC), artifact.read(GATES)
    derived = lock.get("derived", {})
    base = lock["base"]
    return Description(
        build=report.digest,
        kind=ARTIFACT,
        name=name or spec["name"],
        checkpoint=Checkpoint.open(folder).digest,
        base=base["digest"],
        spec=lock["spec"],
        family=base["family"],
        passed=bool(gates["passed"]),
        relation=derived.get("relation", ""),
        origin=derived.get("build", ""),
        files=_stored_files(folder, report.files),
        facts={
            "base": {key: base[key] for key in ("repo", "revision", "path", "variant") if key in base},
            "edits": [edit["id"] for edit in spec["edits"]],
            "gates": {gate["id"]: gate["passed"] for gate in gates["gates"]},
            "libraries": lock["libraries"],
            "seed": lock["seed"],
        },
    )


def digest_of(folder: Path) -> str:
    """The build digest of an artifact: the sha256 of its manifest, which names every other file by digest.

    A signature, made afterwards, is no part of it. `InputError` where there is no manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(str(path), "does not exist", "compile the artifact again")
    return file_digest(path)


def list_flaw(build: str, kind: str, files: Sequence[StoredFile], manifest: bytes) -> str | None:
    """What is wrong with a list of a build's files; None where it is what the build's digest stands for.

    `manifest` are the bytes of an artifact's manifest; a base, which has none, is named by its list itself.
    """
    listed = {file.path: file.sha256 for file in files}
    if kind == BASE:
        return None if listing_digest(listed) == build else "it is not the list that was added"
    if hashlib.sha256(manifest).hexdigest() != build or listed.get(MANIFEST) != build:
        return "its manifest is not the one that was added"
    with tempfile.TemporaryDirectory(prefix="excise-") as place:
        folder = Path(place)
        (folder / MANIFEST).parent.mkdir()
        (folder / MANIFEST).write_bytes(manifest)
        expected = read_manifest(folder)
    if {path: digest for path, digest in listed.items() if path not in AFTERWARDS} != expected:
        return "it is not the list of its manifest"
    return None


def _base(folder: Path, name: str | None) -> Description:
    checkpoint = Checkpoint.open(folder)
    return Description(
        build=checkpoint.digest,
        kind=BASE,
        name=name or folder.resolve().name,
        checkpoint=checkpoint.digest,
        base="",
        spec="",
        family=checkpoint.family,
        passed=True,
        relation="",
        origin="",
        files=_stored_files(folder, checkpoint.digests()),
    )


def _stored_files(folder: Path, digests: Mapping[str, str]) -> tuple[StoredFile, ...]:
    return tuple(StoredFile(path, (folder / path).stat().st_size, digests[path]) for path in sorted(digests))
