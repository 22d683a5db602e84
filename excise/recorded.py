"""What an artifact was made of, opened again: its recorded spec and its base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.artifact import LOCK, SPEC, Artifact
from editspec import InputError, PathBase, load_spec

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from editspec import EditSpec


def recorded_spec(artifact: Artifact, given: Path | None, base: Path | None) -> tuple[EditSpec, Path]:
    """The spec that was compiled, or the one given; and the folder that its relative paths start at."""
    loaded = load_spec(given or artifact.path(SPEC))
    return on_folder(loaded, base), loaded.folder if given else Path.cwd()


def on_folder(spec: EditSpec, base: Path | None) -> EditSpec:
    """The spec with its base's folder replaced, where one is given. Its document stays as it was recorded."""
    if base is None:
        return spec
    return replace(spec, base=PathBase(path=str(base.absolute()), variant=spec.base.variant))


def recorded_base(artifact: Artifact, spec: EditSpec, start: Path | None = None) -> Checkpoint:
    """The base that `spec` names. `InputError` unless it is the one that the artifact was made from."""
    from compiler.base import open_base

    opened = open_base(spec.base, start or spec.folder)
    if artifact.read(LOCK)["base"]["digest"] != opened.digest:
        raise InputError(
            str(opened.root),
            "is not the base that this artifact was made from: its files have other digests",
            "name the right folder with --base",
        )
    return opened
