"""Removes bytes that no build needs: what killed writers left, and on request those of withdrawn builds.

Order makes it safe to be killed: first the index forgets, in one transaction, then the store follows. What
the store still holds then is unknown to the index, so the next run removes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from compiler.progress import Progress, Silent
from editspec.errors import GateFailed
from registry import index
from registry.blobs import Damaged
from registry.catalogue import Registry, append_event
from registry.history import DROPPED, WITHDRAWN
from registry.recipes import Recipe
from registry.tables import blobs, contents, files

_BATCH = 500


@dataclass(frozen=True)
class Swept:
    """What was (in a dry run: would be) removed, what stays, and withdrawn builds without bytes now."""

    removed: int
    removed_bytes: int
    kept: int
    kept_bytes: int
    dropped: tuple[str, ...]


def sweep(
    registry: Registry,
    *,
    withdrawn: bool = False,
    dry_run: bool = False,
    patience: float = 60.0,
    by: str = "",
    progress: Progress | None = None,
) -> Swept:
    """Remove every blob that no build needs; with `withdrawn` the bytes of withdrawn builds too.

    The records and histories of those stay. Waits up to `patience` seconds for those who add or pull,
    then `InputError`. `GateFailed`, and nothing removed, where a recipe is damaged: what it needs is unknown.
    """
    with registry.database.alone(patience) as session:
        with registry.database.reading() as connection:
            entries = index.entries(connection)
            leaving = [entry for entry in entries if entry.state == WITHDRAWN] if withdrawn else []
            gone = {entry.build for entry in leaving}
            staying = {entry.build for entry in entries if entry.state != DROPPED} - gone
            needed = _recipes(connection, staying)
        live = _needed_blobs(registry, needed)
        there = registry.store.sizes()
        doomed = sorted(there.keys() - live)
        if not dry_run:
            with session.writing() as connection:
                for entry in leaving:
                    append_event(connection, entry.build, DROPPED, by=by, reason=entry.reason)
                _forget(connection, set(needed), live)
            with (progress or Silent()).task("remove", len(doomed)) as task:
                for start in range(0, len(doomed), _BATCH):
                    registry.store.remove(doomed[start : start + _BATCH])
                    task.advance(len(doomed[start : start + _BATCH]))
            registry.store.clear_incoming()
    kept = there.keys() & live
    return Swept(
        len(doomed),
        sum(there[name] for name in doomed),
        len(kept),
        sum(there[name] for name in kept),
        tuple(sorted(gone)),
    )


def _recipes(connection: Connection, staying: set[str]) -> dict[str, str]:
    """File sha256 -> recipe, of every file of the builds that stay."""
    rows = connection.execute(select(contents.c.sha256, contents.c.recipe)).all()
    recipes = {row.sha256: row.recipe for row in rows}
    listed = connection.execute(select(files.c.build, files.c.sha256))
    wanted = {sha256 for build, sha256 in listed if build in staying}
    return {sha256: recipes[sha256] for sha256 in wanted if sha256 in recipes}


def _needed_blobs(registry: Registry, needed: dict[str, str]) -> set[str]:
    recipes = sorted(set(needed.values()))
    try:
        read = Recipe.read_all(registry.store, recipes)
    except Damaged as error:
        raise GateFailed(
            f"nothing was removed: recipe {error}; `excise registry verify` says whose it is"
        ) from error
    return {*recipes, *(name for recipe in read for name, _ in recipe.blobs)}


def _forget(connection: Connection, files_kept: set[str], blobs_kept: set[str]) -> None:
    for table, kept in ((contents, files_kept), (blobs, blobs_kept)):
        unwanted = sorted(set(connection.scalars(select(table.c.sha256))) - kept)
        for start in range(0, len(unwanted), _BATCH):
            batch = unwanted[start : start + _BATCH]
            connection.execute(delete(table).where(table.c.sha256.in_(batch)))
