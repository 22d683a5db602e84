"""Pulls a build: puts its files together again as they were added, and checks every digest on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from compiler import atomic
from compiler.artifact import MANIFEST, is_artifact
from compiler.output import storage_refusals
from compiler.progress import Progress, Silent, Task
from editspec.errors import GateFailed, InputError
from registry import index
from registry.blobs import BlobStore, Damaged
from registry.catalogue import Registry
from registry.description import StoredFile, list_flaw
from registry.history import DROPPED, WITHDRAWN
from registry.index import Entry
from registry.recipes import Recipe


def pull(
    registry: Registry,
    reference: str,
    out: Path,
    *,
    force: bool = False,
    withdrawn: bool = False,
    progress: Progress | None = None,
) -> Entry:
    """Write the build to the folder `out`, which appears whole or not at all.

    `force` replaces an artifact that lies there; `withdrawn` takes a build that was withdrawn all the same.
    Raises `InputError` for an unknown build or a place that is taken, `GateFailed` for a withdrawn build, and
    for bytes that are not those that were added.
    """
    place = out.absolute().parent.resolve() / out.absolute().name
    _require_free(out, place, force)
    with registry.database.shared(), storage_refusals(out):
        with registry.database.reading() as connection:
            entry = index.find(connection, reference)
            files = index.files_of(connection, entry.build)
            recipes = index.stored_contents(connection, (file.sha256 for file in files))
        _require_available(entry, withdrawn)
        try:
            with (
                atomic.claim(place.with_name(f".{place.name}.pulling"), wait=False) as folder,
                (progress or Silent()).task(f"pull {entry.name}", entry.size) as task,
            ):
                folder.chmod(0o755)
                for file in files:
                    _write(registry.store, recipes.get(file.sha256), file, folder, task)
                _require_listed(entry, files, folder)
                atomic.publish(folder, place, replace=force)
        except Damaged as error:
            raise GateFailed(f"{entry.build[:12]} cannot be pulled: {error}") from error
        except atomic.Claimed as error:
            raise InputError(str(out), "another pull is writing it", "wait until it ends") from error
        except FileExistsError as error:
            raise InputError(str(out), "appeared meanwhile", "choose another path or --force") from error
    return entry


def _write(store: BlobStore, recipe: str | None, file: StoredFile, folder: Path, task: Task) -> None:
    target = folder / file.path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise GateFailed(f"the index lists {file.path}, which leads out of the build's folder")
    if recipe is None:
        raise Damaged(file.sha256, f"({file.path}) is not in the store")
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = hashlib.sha256()
    with target.open("xb") as sink:
        for data in store.get_all(digest for digest, _ in Recipe.read(store, recipe).blobs):
            whole.update(data)
            sink.write(data)
            task.advance(len(data))
    target.chmod(0o644)
    if whole.hexdigest() != file.sha256:
        raise Damaged(file.sha256, f"({file.path}) was put together wrongly")


def _require_listed(entry: Entry, files: Sequence[StoredFile], folder: Path) -> None:
    """The index may have been changed: the build's own digest decides which files it has."""
    manifest = folder / MANIFEST
    flaw = list_flaw(entry.build, entry.kind, files, manifest.read_bytes() if manifest.is_file() else b"")
    if flaw:
        raise GateFailed(f"{entry.build[:12]}: the index lists other files than were added: {flaw}")


def _require_free(out: Path, place: Path, force: bool) -> None:
    if place.name in ("", ".."):
        raise InputError(str(out), "not a name for a new folder", "end the path in the artifact's name")
    if not os.path.lexists(place):
        return
    if not force:
        raise InputError(str(out), "exists already", "choose another path, or replace it with --force")
    if place.is_symlink() or not is_artifact(place):
        raise InputError(
            str(out), "exists and was not built by Excise, so --force leaves it alone", "choose another path"
        )


def _require_available(entry: Entry, withdrawn: bool) -> None:
    if entry.state == DROPPED:
        raise GateFailed(f"{entry.build[:12]} was withdrawn and its bytes were removed: {entry.reason}")
    if entry.state == WITHDRAWN and not withdrawn:
        raise GateFailed(
            f"{entry.build[:12]} was withdrawn: {entry.reason} (--withdrawn takes it all the same)"
        )
