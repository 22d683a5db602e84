"""What a build leaves behind: the names of an artifact's files, and reading them back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editspec.errors import InputError

CARD = "README.md"
PROVENANCE = "provenance"
SPEC = "provenance/editspec.json"
LOCK = "provenance/lock.json"
PLAN = "provenance/plan.json"
EDITS = "provenance/edits.json"
GATES = "provenance/gates.json"
DELTAS = "provenance/deltas.safetensors"
PARTS = "provenance/parts.safetensors"  # where several runs moved one tensor: each one's own change
GRID = "provenance/grid.png"
REPORT = "provenance/report.html"
MANIFEST = "provenance/manifest.json"
ATTESTATIONS = "provenance/attestations.intoto.jsonl"
SIGNATURE = "model.sig"
AFTERWARDS = (MANIFEST, ATTESTATIONS, SIGNATURE)  # made from the other files, so not listed in the manifest


@dataclass(frozen=True)
class Artifact:
    """A built checkpoint folder: plain diffusers files beside README.md and provenance/."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Artifact:
        """`InputError` unless `folder` was built by Excise."""
        if not is_artifact(folder):
            raise InputError(
                str(folder), "not an artifact of Excise", "give a folder that `excise compile` wrote"
            )
        return cls(folder)

    def path(self, name: str) -> Path:
        """Where the file `name` (one of this module's constants) lies."""
        return self.folder / name

    def read(self, name: str) -> Any:
        """The JSON value in file `name`; `InputError` where it is missing or no JSON."""
        path = self.path(name)
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(str(path), f"cannot be read: {error}", "compile the artifact again") from error

    def write(self, name: str, value: Any) -> None:
        """Store a JSON value as file `name`: sorted keys, so that equal values give equal bytes."""
        path = self.path(name)
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", "utf-8")
        path.chmod(0o644)

    def files(self) -> Iterator[str]:
        """Relative paths of all files, and of links to folders, with forward slashes, sorted."""
        yield from sorted(
            Path(root, name).relative_to(self.folder).as_posix()
            for root, folders, names in os.walk(self.folder)
            for name in (*names, *(name for name in folders if Path(root, name).is_symlink()))
        )

    def sha256(self, name: str) -> str:
        """sha256 (hex) of the file `name`."""
        with self.path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def is_artifact(folder: Path) -> bool:
    """Whether Excise built `folder`: only such a folder is ever replaced."""
    return (folder / SPEC).is_file() and (folder / "model_index.json").is_file()
