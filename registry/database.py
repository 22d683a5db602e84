"""The index's database, SQLite or PostgreSQL: transactions, and the lock between `gc` and writers."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.pool import NullPool

from compiler.atomic import CAN_LOCK
from editspec.errors import InputError
from registry.tables import VERSION, about, metadata

_SQLITE, _POSTGRESQL = "sqlite", "postgresql"
_ADVISORY = 0x45786369_73650001  # "Excise", 1: the number of our lock in PostgreSQL
_CREATING = _ADVISORY + 1
_BUSY_SECONDS = 60.0
_POLL_SECONDS = 0.1


class Session:
    """One process's hold on the index; `writing` commits on the very connection that holds the lock.

    So where PostgreSQL lost that connection, and the lock with it, the commit fails too.
    """

    def __init__(self, database: Database, connection: Connection | None) -> None:
        self._database = database
        self._connection = connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed on leaving, or undone by an exception."""
        if self._connection is None:
            with self._database.writing() as connection:
                yield connection
            return
        with self._database.refusals(), self._connection.begin():
            yield self._connection


class Database:
    """The database at `url`: `sqlite:///file` or `postgresql://host/name`; `create` makes its tables."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        self._url = _parsed(url)
        self.name = self._url.render_as_string(hide_password=True)
        self._sqlite = self._url.get_backend_name() == _SQLITE
        if self._sqlite and not create and not self._file.is_file():
            raise InputError(str(self._file), "no registry is here", "`excise registry add` makes one")
        self._engine = self._opened(create)
        with self.refusals():
            if create:
                self._create()
            with self.reading() as connection:
                exists = self._engine.dialect.has_table(connection, about.name)
                facts = dict(connection.execute(select(about.c.name, about.c.value)).all()) if exists else {}
        if not facts:
            raise InputError(self.name, "no registry is here", "`excise registry add` makes one")
        if facts["version"] != VERSION:
            what = f"is an index of version {facts['version']}, this Excise reads version {VERSION}"
            raise InputError(self.name, what, "use the Excise that wrote it")
        self.id: str = facts["id"]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view of the index."""
        with self.refusals(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed on leaving, or undone by an exception."""
        with self.refusals(), self._engine.connect() as connection:
            connection = connection.execution_options(excise_writes=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def shared(self) -> Iterator[Session]:
        """Keep `gc` out while this process relies on blobs being there; many may do so at once."""
        with self._locked(alone=False, patience=float("inf")) as session:
            yield session

    @contextlib.contextmanager
    def alone(self, patience: float) -> Iterator[Session]:
        """Keep every `shared` out. `InputError` where others are at work for over `patience` seconds."""
        with self._locked(alone=True, patience=patience) as session:
            yield session

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """A database that cannot be reached or used, in words and without its password."""
        try:
            yield
        except IntegrityError:
            raise  # what it means, its caller knows
        except DBAPIError as error:
            what = str(error.orig).strip().partition("\n")[0]
            raise InputError(
                self.name, f"the index fails: {what}", "check that it runs and may be used"
            ) from error

    @property
    def _file(self) -> Path:
        return Path(self._url.database or "").expanduser()

    def _opened(self, create: bool) -> Engine:
        try:
            if not self._sqlite:
                return create_engine(self._url, poolclass=NullPool)
            if create:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(self._url, poolclass=NullPool, connect_args={"timeout": _BUSY_SECONDS})
        except ImportError as error:
            remedy = "pip install 'excise[registry]'"
            raise InputError(
                self.name, f"needs the package {error.name}, which is not here", remedy
            ) from error
        event.listen(engine, "connect", _begin_by_hand)
        event.listen(engine, "begin", _begin)
        return engine

    def _create(self) -> None:
        with self.writing() as connection:
            if not self._sqlite:  # SQLite's write transaction keeps others out by itself
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATING})
            if self._engine.dialect.has_table(connection, about.name):
                return
            metadata.create_all(connection, checkfirst=False)
            facts = {"version": VERSION, "id": uuid.uuid4().hex}
            connection.execute(insert(about), [{"name": name, "value": facts[name]} for name in facts])

    @contextlib.contextmanager
    def _locked(self, *, alone: bool, patience: float) -> Iterator[Session]:
        until = time.monotonic() + patience
        if self._sqlite:
            with _file_lock(self._file.with_name(self._file.name + ".lock"), alone, until, self.name):
                yield Session(self, None)
            return
        attempt = text(f"SELECT pg_try_advisory_lock{'' if alone else '_shared'}(:key)")
        with self.refusals(), self._engine.connect() as connection:
            while not connection.execute(attempt, {"key": _ADVISORY}).scalar_one():
                connection.rollback()
                _wait(until, self.name)
            connection.commit()  # the lock stays with the connection, and falls with it
            yield Session(self, connection)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None  # its message would repeat the URL, password and all
    if parsed is None:
        raise InputError("--index", "is not a database URL", "give sqlite:///FILE or postgresql://HOST/NAME")
    if parsed.drivername in ("postgres", _POSTGRESQL):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == _SQLITE:
        if not parsed.database or parsed.database == ":memory:":
            raise InputError("--index", "an index in memory is gone at once", "give sqlite:///FILE")
    elif parsed.get_backend_name() != _POSTGRESQL:
        what = f"an index cannot be in {parsed.get_backend_name()}"
        raise InputError("--index", what, "give sqlite:///FILE or postgresql://HOST/NAME")
    return parsed


def _begin_by_hand(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's driver would begin transactions late, and none for reading
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    """A writer takes its lock at once: two that first read and then write would refuse each other."""
    writes = connection.get_execution_options().get("excise_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def _file_lock(path: Path, alone: bool, until: float, name: str) -> Iterator[None]:
    """The system drops this lock when its holder dies, so a killed writer blocks nobody."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if CAN_LOCK:
            from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

            while True:
                try:
                    flock(handle, (LOCK_EX if alone else LOCK_SH) | LOCK_NB)
                    break
                except BlockingIOError:
                    _wait(until, name)
        yield
    finally:
        os.close(handle)


def _wait(until: float, name: str) -> None:
    if time.monotonic() > until:
        raise InputError(name, "others are adding to it or reading from it", "try again when they are done")
    time.sleep(_POLL_SECONDS)
