"""The index's tables, and the triggers that make the database itself refuse to rewrite history."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
)

VERSION = "1"

metadata = MetaData()

#: Facts about the index itself: its version, and the id that its store must carry.
about = Table(
    "excise_about",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)

builds = Table(
    "excise_builds",
    metadata,
    Column("build", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("name", Text, nullable=False, index=True),
    Column("checkpoint", String(64), nullable=False, index=True),
    Column("base", String(64), nullable=False, index=True),
    Column("spec", String(64), nullable=False),
    Column("family", String(16), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("relation", String(16), nullable=False),
    Column("origin", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("facts", JSON, nullable=False),
)

files = Table(
    "excise_files",
    metadata,
    Column("build", ForeignKey("excise_builds.build"), primary_key=True),
    Column("path", String(512), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
)

events = Table(
    "excise_events",
    metadata,
    Column("build", ForeignKey("excise_builds.build"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("at", String(40), nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)

#: Files whose bytes are in the store: `recipe` is the blob that lists a file's blobs in order.
contents = Table(
    "excise_contents",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("recipe", String(64), nullable=False),
)

#: Blobs that a file in `contents` needs, recipes included. A row says that the bytes are in the store.
blobs = Table(
    "excise_blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
)

#: What may only grow. `contents` and `blobs` shrink when `gc` removes bytes.
HISTORY = (builds, files, events)

_POSTGRESQL_REFUSAL = """
CREATE OR REPLACE FUNCTION excise_history_only_grows() RETURNS trigger AS
$$ BEGIN RAISE EXCEPTION 'history only grows'; END $$ LANGUAGE plpgsql
"""

_ddl: Any = DDL  # the library leaves its constructor untyped

for _table in HISTORY:
    for _verb in ("UPDATE", "DELETE"):
        _trigger = _ddl(
            f"CREATE TRIGGER {_table.name}_no_{_verb.lower()} BEFORE {_verb} ON {_table.name} "
            "BEGIN SELECT RAISE(ABORT, 'history only grows'); END"
        )
        event.listen(_table, "after_create", _trigger.execute_if(dialect="sqlite"))
    event.listen(_table, "after_create", _ddl(_POSTGRESQL_REFUSAL).execute_if(dialect="postgresql"))
    _trigger = _ddl(
        f"CREATE TRIGGER {_table.name}_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {_table.name} "
        "FOR EACH STATEMENT EXECUTE FUNCTION excise_history_only_grows()"
    )
    event.listen(_table, "after_create", _trigger.execute_if(dialect="postgresql"))
