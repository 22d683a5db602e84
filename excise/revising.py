"""Compiles what `excise undo` and `excise rebase` decided, and notes in the lock what it was made out of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact import LOCK, Artifact

if TYPE_CHECKING:
    from compiler.revision import Revision


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
