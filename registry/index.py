"""Questions to the index and additions to it, on a connection, so that several make one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from editspec.errors import InputError, did_you_mean
from registry.description import Description, StoredFile
from registry.history import RELEASED, Event
from registry.tables import blobs, builds, contents, events, files

SHORTEST_PREFIX = 6  # digits of a digest that may stand for the whole
_BATCH = 500  # values in one statement; databases allow some thousand


@dataclass(frozen=True)
class Entry:
    """A build as the index has it: what it is, when it came, its present state and why."""

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
    size: int
    facts: Mapping[str, Any]
    added: str
    state: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**self.__dict__, "facts": dict(self.facts)}


def entries(connection: Connection, *conditions: Any) -> list[Entry]:
    """Builds that meet all conditions, oldest first."""
    first, last = events.alias("first"), events.alias("last")
    newest = select(func.max(events.c.number)).where(events.c.build == builds.c.build).scalar_subquery()
    query = (
        select(builds, first.c.at.label("added"), last.c.state, last.c.reason)
        .join(first, and_(first.c.build == builds.c.build, first.c.number == 1))
        .join(last, and_(last.c.build == builds.c.build, last.c.number == newest))
        .where(*conditions)
        .order_by(first.c.at, builds.c.build)
    )
    return [Entry(*row) for row in connection.execute(query)]


def find(connection: Connection, reference: str) -> Entry:
    """The build that `reference` names: a digest, its first digits, or a name.

    A name means its newest released build, or its only one. Raises `InputError` where that is not one.
    """
    text = reference.strip().lower()
    if len(text) >= SHORTEST_PREFIX and set(text) <= set("0123456789abcdef"):
        found = entries(connection, builds.c.build.startswith(text, autoescape=True))
        if len(found) > 1:
            raise InputError(reference, f"begins {len(found)} digests", "give more digits")
        if found:
            return found[0]
    found = entries(connection, builds.c.name == reference)
    released = [entry for entry in found if entry.state == RELEASED]
    if released or len(found) == 1:
        return (released or found)[-1]
    if found:
        raise InputError(
            reference,
            f"has {len(found)} builds and none is released",
            f"name one by its digest: {', '.join(entry.build[:12] for entry in found[-5:])}",
        )
    names = sorted(connection.scalars(select(builds.c.name).distinct()))
    raise InputError(reference, "no build is called so", did_you_mean(reference, names, "names"))


def files_of(connection: Connection, build: str) -> tuple[StoredFile, ...]:
    """A build's files by path."""
    query = select(files.c.path, files.c.size, files.c.sha256).where(files.c.build == build)
    return tuple(StoredFile(*row) for row in connection.execute(query.order_by(files.c.path)))


def history_of(connection: Connection, build: str) -> list[tuple[Event, str]]:
    """A build's events from the first on, each with the digest that was stored with it."""
    query = select(events).where(events.c.build == build).order_by(events.c.number)
    return [_event(row) for row in connection.execute(query)]


def parents(connection: Connection, entry: Entry) -> list[tuple[str, Entry]]:
    """What a build was made from, with the relation: what its base is, and what it undid or rebased."""
    found = []
    if entry.base:
        found += [("base", other) for other in entries(connection, builds.c.checkpoint == entry.base)]
    if entry.origin:
        found += [(entry.relation, other) for other in entries(connection, builds.c.build == entry.origin)]
    return found


def children(connection: Connection, entry: Entry) -> list[tuple[str, Entry]]:
    """What was made from a build, with the relation."""
    either = or_(builds.c.base == entry.checkpoint, builds.c.origin == entry.build)
    return [
        (other.relation if other.origin == entry.build else "base", other)
        for other in entries(connection, either)
    ]


def insert_build(connection: Connection, description: Description) -> tuple[bool, list[str]]:
    """Add a build and its files: whether the build is new, and the paths that are new to it.

    A build that is there may get more files, a signature, but no other ones: `InputError`.
    """
    columns = {column.name for column in builds.columns}
    row = {name: getattr(description, name) for name in columns - {"facts"}}
    new = bool(insert_new(connection, builds, [{**row, "facts": dict(description.facts)}]))
    there = {file.path for file in files_of(connection, description.build)}
    rows = [{"build": description.build, **file.__dict__} for file in description.files]
    insert_new(connection, files, [row for row in rows if row["path"] not in there])
    stored = {file.path: file for file in files_of(connection, description.build)}
    for file in description.files:
        if stored[file.path] != file:
            where = f"{description.build[:12]} {file.path}"
            raise InputError(where, "is in the registry with other bytes", "what is there stays")
    return new, [path for path in stored if path not in there]


def insert_event(connection: Connection, event: Event) -> None:
    """Append an event. `sqlalchemy.exc.IntegrityError` where another process appended one meanwhile."""
    row = {name: value for name, value in event.__dict__.items() if name != "by"}
    connection.execute(events.insert(), [{**row, "actor": event.by, "digest": event.digest}])


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows whose key is not there yet; how many those were.

    Callers give rows in the order of their keys: then two writers never wait for each other in a ring.
    """
    if not rows:
        return 0
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    keys = list(table.primary_key.columns)
    inserted = 0
    for start in range(0, len(rows), _BATCH):
        batch = [dict(row) for row in rows[start : start + _BATCH]]
        statement = dialect.insert(table).values(batch).on_conflict_do_nothing(index_elements=keys)
        inserted += len(connection.execute(statement.returning(*keys)).all())  # not every driver counts rows
    return inserted


def known_blobs(connection: Connection, digests: Iterable[str]) -> set[str]:
    """Those of these blobs that the store is known to hold."""
    return {row[0] for row in _lookup(connection, blobs, digests)}


def stored_contents(connection: Connection, digests: Iterable[str]) -> dict[str, str]:
    """Of files with these digests, those that are stored: their sha256 -> recipe."""
    return {row[0]: row[2] for row in _lookup(connection, contents, digests)}


def _lookup(connection: Connection, table: Table, digests: Iterable[str]) -> list[Row[*tuple[Any, ...]]]:
    wanted = sorted(set(digests))
    found: list[Row[*tuple[Any, ...]]] = []
    for start in range(0, len(wanted), _BATCH):
        query = select(table).where(table.c.sha256.in_(wanted[start : start + _BATCH]))
        found += connection.execute(query).all()
    return found


def stored_bytes(connection: Connection) -> int:
    """Bytes of all blobs that the store is known to hold."""
    return int(connection.execute(select(func.coalesce(func.sum(blobs.c.size), 0))).scalar_one())


def _event(row: Row[*tuple[Any, ...]]) -> tuple[Event, str]:
    *fields, digest = row
    return Event(*fields), digest
