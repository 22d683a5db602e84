"""Adds a build: stores those of its bytes that are new, then enters it in the index in one transaction.

Killed before that transaction, nothing is entered; the blobs that were stored already are taken up by the
next attempt or removed by `gc`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from compiler.file_copy import opened, read_exactly
from compiler.output import storage_refusals
from compiler.progress import Progress, Silent, Task
from editspec.errors import InputError
from registry import index
from registry.catalogue import Registry, append_event, append_note
from registry.chunks import cut
from registry.database import Session
from registry.description import Description, StoredFile, describe
from registry.history import CANDIDATE, DROPPED, WITHDRAWN
from registry.recipes import Recipe
from registry.tables import blobs, builds, contents

BATCH_BYTES = 64 * 2**20  # of blobs that are hashed before the index is asked which of them are new


@dataclass(frozen=True)
class Added:
    """`new` is False where the build was there already. Bytes: its own `size`, and those `stored` for it."""

    build: str
    new: bool
    size: int
    stored: int


def add(
    registry: Registry,
    folder: Path,
    *,
    name: str | None = None,
    by: str = "",
    progress: Progress | None = None,
) -> Added:
    """Add the artifact or plain checkpoint in `folder` as a candidate; one that is there gets its signature.

    Raises `InputError` for another kind of folder or a build that was withdrawn, `GateFailed` for an artifact
    that does not verify.
    """
    description = describe(folder, name)
    with storage_refusals(folder), registry.database.shared() as session:
        there = _present(registry, description.build)
        files = [file for file in description.files if file.path not in there]
        with (progress or Silent()).task(f"store {description.name}", description.size) as task:
            writer = _Writer(registry, task)
            for file in files:
                writer.add(folder / file.path, file)
            new = _enter(session, description, writer, by)
    return Added(description.build, new, description.size, writer.stored)


class _Writer:
    """Stores files blob by blob and remembers what the index must learn."""

    def __init__(self, registry: Registry, task: Task) -> None:
        self.registry = registry
        self.task = task
        self.contents: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, int] = {}
        self.stored = 0

    def add(self, path: Path, file: StoredFile) -> None:
        """Store one file unless its bytes are there, from this build or another."""
        if file.sha256 in self.contents:
            self.task.advance(file.size)
            return
        with self.registry.database.reading() as connection:
            recipe = index.stored_contents(connection, [file.sha256]).get(file.sha256)
        if recipe is None:
            made = self._store(path, file.sha256)
            data = made.encoded()
            recipe = hashlib.sha256(data).hexdigest()
            self._put([(recipe, data)])
            self.contents[file.sha256] = {"sha256": file.sha256, "size": file.size, "recipe": recipe}
        else:
            self.task.advance(file.size)

    def _store(self, path: Path, expected: str) -> Recipe:
        whole = hashlib.sha256()
        listed: list[tuple[str, int]] = []
        batch: list[tuple[str, bytes]] = []
        for data in _read(path):
            whole.update(data)
            digest = hashlib.sha256(data).hexdigest()
            listed.append((digest, len(data)))
            batch.append((digest, data))
            if sum(len(data) for _, data in batch) >= BATCH_BYTES:
                self._put(batch)
                batch = []
            self.task.advance(len(data))
        self._put(batch)
        if whole.hexdigest() != expected:
            raise InputError(str(path), "changed while it was read", "leave the folder alone while adding it")
        return Recipe(tuple(listed))

    def _put(self, batch: list[tuple[str, bytes]]) -> None:
        with self.registry.database.reading() as connection:
            known = index.known_blobs(connection, (digest for digest, _ in batch))
        new = {digest: data for digest, data in batch if digest not in known and digest not in self.blobs}
        self.registry.store.put_all(new.items())
        self.blobs |= {digest: len(data) for digest, data in batch}
        self.stored += sum(len(data) for data in new.values())


def _read(path: Path) -> Iterator[bytes]:
    ranges = cut(path)
    with opened(path) as source:
        for run in ranges:
            data = bytearray(len(run))
            read_exactly(source, memoryview(data), run.start, path)
            yield bytes(data)


def _present(registry: Registry, build: str) -> set[str]:
    """The paths that the registry has of this build; `InputError` where it was withdrawn."""
    with registry.database.reading() as connection:
        found = index.entries(connection, builds.c.build == build)
        files = index.files_of(connection, build)
    if found and found[0].state in (WITHDRAWN, DROPPED):
        raise InputError(build[:12], f"was withdrawn: {found[0].reason}", "a withdrawn build stays out")
    return {file.path for file in files}


def _enter(session: Session, description: Description, writer: _Writer, by: str) -> bool:
    with session.writing() as connection:
        new, paths = index.insert_build(connection, description)
        enter_bytes(connection, writer.contents, writer.blobs)
        if new:
            append_event(connection, description.build, CANDIDATE, by=by)
        elif paths:
            append_note(connection, description.build, by=by, reason=f"added {', '.join(paths)}")
    return new


def enter_bytes(connection: Connection, files: dict[str, dict[str, Any]], stored: dict[str, int]) -> None:
    """Let the index know of files and blobs that the store now holds."""
    index.insert_new(connection, blobs, [{"sha256": name, "size": stored[name]} for name in sorted(stored)])
    index.insert_new(connection, contents, [files[name] for name in sorted(files)])
