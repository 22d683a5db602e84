"""Verifies builds in the registry: histories, lists of files, and every byte that the store holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.artifact import MANIFEST
from compiler.progress import Progress, Silent, Task
from registry import index
from registry.blobs import BlobStore, Damaged
from registry.catalogue import Registry
from registry.description import StoredFile, list_flaw
from registry.history import DROPPED, flaw
from registry.index import Entry
from registry.recipes import Recipe


@dataclass(frozen=True)
class Problem:
    """What is wrong with a build; `path` is the file that is damaged, "" where it is the record itself."""

    build: str
    path: str
    what: str


def check(
    registry: Registry, entries: Sequence[Entry], *, deep: bool = False, progress: Progress | None = None
) -> list[Problem]:
    """Everything that is wrong with these builds; [] says that each can be pulled as it was added.

    Every blob is read once and held against its sha256, however many builds share it. `deep` puts every file
    together as well and holds it against its own.
    """
    problems: list[Problem] = []
    with registry.database.shared():
        with registry.database.reading() as connection:
            listed = {entry.build: index.files_of(connection, entry.build) for entry in entries}
            for entry in entries:
                if what := flaw(entry.build, index.history_of(connection, entry.build)):
                    problems.append(Problem(entry.build, "", f"its history is not whole: {what}"))
            wanted = {file.sha256 for files in listed.values() for file in files}
            recipes = index.stored_contents(connection, wanted)
        total = sum(entry.size for entry in entries)
        with (progress or Silent()).task("verify", total) as task:
            examiner = _Examiner(registry.store, recipes, deep, task)
            for entry in entries:
                problems += _of_build(entry, listed[entry.build], examiner)
    return problems


def _of_build(entry: Entry, files: Sequence[StoredFile], examiner: _Examiner) -> Iterator[Problem]:
    if entry.state == DROPPED:
        return  # its manifest is gone with its bytes: the record is all there is
    damaged = False
    for file in files:
        if what := examiner.flaw_of(file):
            damaged = damaged or file.path == MANIFEST
            yield Problem(entry.build, file.path, what)
    manifest = next((file for file in files if file.path == MANIFEST), None)
    if damaged:
        return
    if flaw_of_list := list_flaw(entry.build, entry.kind, files, examiner.bytes_of(manifest)):
        yield Problem(entry.build, "", f"its list of files was changed: {flaw_of_list}")


class _Examiner:
    """Remembers every verdict, so that what builds share is read once."""

    def __init__(self, store: BlobStore, recipes: dict[str, str], deep: bool, task: Task) -> None:
        self.store = store
        self.recipes = recipes
        self.deep = deep
        self.task = task
        self.of_files: dict[str, str] = {}
        self.sound: set[str] = set()

    def flaw_of(self, file: StoredFile) -> str:
        """What is wrong with a file's bytes, "" for nothing."""
        if file.sha256 not in self.of_files:
            self.of_files[file.sha256] = self._examined(file)
        self.task.advance(file.size)
        return self.of_files[file.sha256]

    def bytes_of(self, file: StoredFile | None) -> bytes:
        """A small, sound file; b"" for none."""
        if file is None or file.sha256 not in self.recipes:
            return b""
        recipe = Recipe.read(self.store, self.recipes[file.sha256])
        return b"".join(self.store.get(name) for name, _ in recipe.blobs)

    def _examined(self, file: StoredFile) -> str:
        if file.sha256 not in self.recipes:
            return "its bytes are not in the store"
        whole = hashlib.sha256()
        try:
            recipe = Recipe.read(self.store, self.recipes[file.sha256])
            names = [name for name, _ in recipe.blobs if self.deep or name not in self.sound]
            for name, data in zip(names, self.store.get_all(names), strict=True):
                self.sound.add(name)
                if self.deep:
                    whole.update(data)
        except Damaged as error:
            return str(error)
        if recipe.size != file.size:
            return f"its recipe makes {recipe.size:,} bytes, not {file.size:,}"
        if self.deep and whole.hexdigest() != file.sha256:
            return "its recipe makes another file"
        return ""
