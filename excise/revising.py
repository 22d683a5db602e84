"""Compiles what `excise undo` and `excise rebase` decided, and notes in the lock what it was made out of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact import LOCK, Artifact
from compiler.base import open_base
from editspec import InputError, PathBase

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.revision import Revision
    from editspec import EditSpec


def on_folder(spec: EditSpec, base: Path | None) -> EditSpec:
    """The spec with its base's folder replaced, where one is given. Its document stays as it was recorded."""
    if base is None:
        return spec
    return replace(spec, base=PathBase(path=str(base.absolute()), variant=spec.base.variant))


def recorded_base(artifact: Artifact, spec: EditSpec) -> Checkpoint:
    """The base that `spec` names. `InputError` unless it is the one that the artifact was made from."""
    opened = open_base(spec.base, spec.folder)
    if artifact.read(LOCK)["base"]["digest"] != opened.digest:
        raise InputError(
            str(opened.root),
            "is not the base that this artifact was made from: its files have other digests",
            "name the right folder with --base",
        )
    return opened


def compile_revision(
    artifact: Artifact, revision: Revision, output: Path, derived: dict[str, Any], **options: Any
) -> Artifact:
    """Compile to the folder `output` like any spec: gates, card and manifest included.

    `derived` goes into the lock, with the digest of the build that it was made out of and with what was kept.
    """
    from excise.commands.compile import build
    from registry.description import digest_of

    note = {
        **derived,
        "build": digest_of(artifact.folder),
        "kept": [list(ids) for ids in revision.kept],
        "solved": [list(ids) for ids in revision.solved],
    }

    def write_origin(built: Artifact) -> None:
        built.write(LOCK, {**built.read(LOCK), "derived": note})

    return build(revision.spec, output, passes=revision.passes, finish=(write_origin,), **options)
