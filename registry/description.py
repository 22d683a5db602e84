"""What a folder is, for the registry: its files by digest, what it was built from, how its gates went."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.artifact import GATES, LOCK, SPEC, Artifact, is_artifact
from compiler.checkpoint import Checkpoint
from compiler.digests import file_digests
from editspec.errors import GateFailed
from exporters.inventory import Inventory
from exporters.manifest import differences, read_manifest

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

    `build` names all files, `checkpoint` those that diffusers loads (what another build's `base` refers to);
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

    Raises `InputError` for another kind of folder, `GateFailed` for an artifact that is not as it was built.
    """
    if not is_artifact(folder):
        return _base(folder, name)
    artifact = Artifact.open(folder)
    inventory = Inventory.of(folder)
    digests = inventory.digests()
    if changes := differences(inventory, digests, read_manifest(folder)):
        found = "\n  ".join(f"{change.path} is {change.what}" for change in changes[:10])
        raise GateFailed(f"{folder} is not as it was built:\n  {found}")
    files = tuple(StoredFile(path, inventory.files[path], digest) for path, digest in digests.items())
    lock, spec, gates = artifact.read(LOCK), artifact.read(SPEC), artifact.read(GATES)
    derived = lock.get("derived", {})
    base = lock["base"]
    return Description(
        build=build_digest({file.path: file.sha256 for file in files}),
        kind=ARTIFACT,
        name=name or spec["name"],
        checkpoint=Checkpoint.open(folder).digest,
        base=base["digest"],
        spec=lock["spec"],
        family=base["family"],
        passed=bool(gates["passed"]),
        relation=derived.get("relation", ""),
        origin=derived.get("build", ""),
        files=files,
        facts={
            "base": {key: base[key] for key in ("repo", "revision", "path", "variant") if key in base},
            "edits": [edit["id"] for edit in spec["edits"]],
            "gates": {gate["id"]: gate["passed"] for gate in gates["gates"]},
            "libraries": lock["libraries"],
            "seed": lock["seed"],
        },
    )


def build_digest(digests: Mapping[str, str]) -> str:
    """One sha256 over a folder's files: path -> sha256, in the form that `sha256sum` prints."""
    lines = "".join(f"{digests[path]}  {path}\n" for path in sorted(digests))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def digest_of(folder: Path) -> str:
    """The build digest of an artifact's folder as it lies there."""
    return build_digest(Inventory.of(Artifact.open(folder).folder).digests())


def _base(folder: Path, name: str | None) -> Description:
    checkpoint = Checkpoint.open(folder)
    digests = file_digests(folder / path for path in checkpoint.files())
    files = tuple(
        StoredFile(path, (folder / path).stat().st_size, digests[folder / path])
        for path in checkpoint.files()
    )
    return Description(
        build=build_digest({file.path: file.sha256 for file in files}),
        kind=BASE,
        name=name or folder.resolve().name,
        checkpoint=checkpoint.digest,
        base="",
        spec="",
        family=checkpoint.family,
        passed=True,
        relation="",
        origin="",
        files=files,
    )
