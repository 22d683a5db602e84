"""A registry, index and store together: what it holds, what came from what, and the state of each."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from editspec.errors import GateFailed, InputError
from registry import index
from registry.blobs import BlobStore
from registry.database import Database
from registry.description import StoredFile
from registry.history import RELEASED, Event, following, noted
from registry.index import Entry
from registry.tables import builds

_ATTEMPTS = 5  # each one lost means that another process took the step before us


@dataclass(frozen=True)
class Ancestry:
    """A build with what it was made from and what was made from it, as (relation, build) pairs."""

    entry: Entry
    parents: tuple[tuple[str, Entry], ...]
    children: tuple[tuple[str, Entry], ...]


class Registry:
    """Builds by digest. Several processes may use one registry at once; `Database` keeps order."""

    def __init__(self, database: Database, store: BlobStore) -> None:
        self.database = database
        self.store = store

    @classmethod
    def open(
        cls,
        folder: Path | None = None,
        *,
        index: str | None = None,
        store: str | None = None,
        create: bool = False,
    ) -> Registry:
        """The registry in `folder` (the user's own unless given); `index` and `store` are URLs of its parts.

        Raises `InputError` where there is none, or where the two belong to different registries; with
        `create` a missing one is made.
        """
        folder = folder or default_folder()
        database = Database(index or f"sqlite:///{folder.absolute() / 'index.sqlite'}", create=create)
        blobs = BlobStore(store or str(folder / "store"))
        blobs.claim(database.id, create=create)
        return cls(database, blobs)

    def find(self, reference: str) -> Entry:
        """The build of that digest, first digits or name. Raises `InputError`."""
        with self.database.reading() as connection:
            return index.find(connection, reference)

    def entries(self, *, name: str | None = None, state: str | None = None) -> list[Entry]:
        """Builds, oldest first; of one name or in one state."""
        with self.database.reading() as connection:
            conditions = [builds.c.name == name] if name else []
            found = index.entries(connection, *conditions)
        return [entry for entry in found if state in (None, entry.state)]

    def files(self, entry: Entry) -> tuple[StoredFile, ...]:
        """A build's files by path."""
        with self.database.reading() as connection:
            return index.files_of(connection, entry.build)

    def history(self, entry: Entry) -> list[Event]:
        """A build's events, first to last."""
        with self.database.reading() as connection:
            return [event for event, _ in index.history_of(connection, entry.build)]

    def ancestry(self, reference: str) -> Ancestry:
        """What the build was made from, and what from it: one step each way."""
        with self.database.reading() as connection:
            entry = index.find(connection, reference)
            before, after = index.parents(connection, entry), index.children(connection, entry)
            return Ancestry(entry, tuple(before), tuple(after))

    def stored_bytes(self) -> int:
        """Bytes that the store holds for all builds together."""
        with self.database.reading() as connection:
            return index.stored_bytes(connection)

    def promote(self, reference: str, state: str, *, reason: str = "", by: str = "") -> Event:
        """Move a build to `state`, released or withdrawn. `InputError` for a step that is not allowed.

        Raises `GateFailed` when a build is to be released that failed a gate or whose bytes are not intact.
        """
        for _ in range(_ATTEMPTS):
            entry = self.find(reference)
            if state == RELEASED:
                following(self.history(entry), entry.build, state, at=now(), by=by, reason=reason)
                self._require_fit(entry)
            try:
                with self.database.writing() as connection:
                    return append_event(connection, entry.build, state, by=by, reason=reason)
            except IntegrityError:
                continue
        raise InputError(reference, "others change its state at the same time", "try again")

    def _require_fit(self, entry: Entry) -> None:
        from registry.checking import check

        if not entry.passed:
            failed = ", ".join(id for id, passed in entry.facts.get("gates", {}).items() if not passed)
            raise GateFailed(f"{entry.build[:12]} failed its gates ({failed}): it cannot be released")
        if problems := check(self, [entry]):
            raise GateFailed("\n  ".join(f"{p.build[:12]} {p.path}: {p.what}" for p in problems))


def append_event(connection: Connection, build: str, state: str, *, by: str = "", reason: str = "") -> Event:
    """Append the build's next event inside a transaction. `InputError` for a step that is not allowed."""
    history = [event for event, _ in index.history_of(connection, build)]
    event = following(history, build, state, at=now(), by=by, reason=reason)
    index.insert_event(connection, event)
    return event


def append_note(connection: Connection, build: str, *, by: str = "", reason: str = "") -> Event:
    """Append an event that changes no state."""
    history = [event for event, _ in index.history_of(connection, build)]
    event = noted(history, at=now(), by=by, reason=reason)
    index.insert_event(connection, event)
    return event


def default_folder() -> Path:
    """Where a user's registry is: beside other data that is not to be lost, unlike the cache."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "excise" / "registry"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "excise" / "registry"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "excise" / "registry"


def now() -> str:
    """This machine's time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
