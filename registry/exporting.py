"""Exports builds into another registry, which may be new: bytes, records, and histories as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.progress import Progress, Silent
from editspec.errors import GateFailed, InputError
from registry import index
from registry.adding import enter_bytes
from registry.blobs import Damaged
from registry.catalogue import Registry
from registry.description import Description, StoredFile
from registry.history import Event
from registry.index import Entry
from registry.recipes import Recipe

RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Exported:
    """How many builds were exported, how many of them were new there, and bytes written for them."""

    builds: int
    new: int
    stored: int


def export(
    source: Registry, target: Registry, entries: Sequence[Entry], progress: Progress | None = None
) -> Exported:
    """Bring these builds into `target`. What it has already stays; histories are continued, never rewritten.

    Raises `InputError` where a build has another history there, `GateFailed` for damaged bytes.
    """
    new = stored = 0
    with (
        source.database.shared(),
        target.database.shared() as session,
        (progress or Silent()).task("export", sum(entry.size for entry in entries)) as task,
    ):
        for entry in entries:
            files, history = source.files(entry), source.history(entry)
            try:
                needed, blobs, written = _copied(source, target, files)
            except Damaged as error:
                raise GateFailed(f"{entry.build[:12]} cannot be exported: {error}") from error
            stored += written
            with session.writing() as connection:
                new += index.insert_build(connection, _description(entry, files))[0]
                enter_bytes(connection, needed, blobs)
                there = [event for event, _ in index.history_of(connection, entry.build)]
                if there != history[: len(there)]:
                    what = "has another history in the target"
                    raise InputError(entry.build[:12], what, "export into a new registry")
                for event in history[len(there) :]:
                    index.insert_event(connection, event)
            task.advance(entry.size)
    return Exported(len(entries), new, stored)


def write_records(registry: Registry, entries: Sequence[Entry], path: Path) -> None:
    """One line of JSON for each build, with its files and events: to read, to compare, to keep elsewhere."""
    with path.open("w", encoding="utf-8") as file:
        for entry in entries:
            record = record_of(entry, registry.files(entry), registry.history(entry))
            file.write(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n")
    path.chmod(0o644)


def record_of(entry: Entry, files: Sequence[StoredFile], history: Sequence[Event]) -> dict[str, Any]:
    """Everything that the index knows of a build."""
    return {
        **entry.as_dict(),
        "files": [asdict(file) for file in files],
        "history": [event.as_dict() for event in history],
    }


def _copied(
    source: Registry, target: Registry, files: Sequence[StoredFile]
) -> tuple[dict[str, dict[str, Any]], dict[str, int], int]:
    """Copy what the target lacks: rows of its contents, its new blobs with sizes, and bytes written."""
    digests = {file.sha256 for file in files}
    with source.database.reading() as connection:
        recipes = index.stored_contents(connection, digests)
    with target.database.reading() as connection:
        there = index.stored_contents(connection, digests)
    needed: dict[str, dict[str, Any]] = {}
    blobs: dict[str, int] = {}
    for file in files:
        if file.sha256 in recipes and file.sha256 not in there:
            recipe = recipes[file.sha256]
            needed[file.sha256] = {"sha256": file.sha256, "size": file.size, "recipe": recipe}
            blobs[recipe] = len(source.store.get(recipe))
            blobs |= dict(Recipe.read(source.store, recipe).blobs)
    with target.database.reading() as connection:
        missing = sorted(blobs.keys() - index.known_blobs(connection, blobs))
    for start in range(0, len(missing), 16):
        batch = missing[start : start + 16]
        target.store.put_all(zip(batch, source.store.get_all(batch), strict=True))
    return needed, blobs, sum(blobs[name] for name in missing)


def _description(entry: Entry, files: Sequence[StoredFile]) -> Description:
    return Description(
        build=entry.build,
        kind=entry.kind,
        name=entry.name,
        checkpoint=entry.checkpoint,
        base=entry.base,
        spec=entry.spec,
        family=entry.family,
        passed=entry.passed,
        relation=entry.relation,
        origin=entry.origin,
        files=tuple(files),
        facts=entry.facts,
    )
