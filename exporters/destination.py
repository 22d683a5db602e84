"""Where an export goes: a folder or a file that appears whole or not at all, with its record."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact import Artifact
from compiler.file_copy import create, write_all
from compiler.output import Output, require_space, storage_refusals
from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint

RECORD = "export.json"
VERSION = 1


@contextlib.contextmanager
def export_folder(out: Path, *, checkpoint: Checkpoint, needed_bytes: int, force: bool) -> Iterator[Artifact]:
    """A fresh folder to fill; on leaving it becomes `out` in one step, on an error it disappears.

    `force` replaces an earlier export, nothing else. `InputError`: nothing was written.
    """
    with storage_refusals(out):
        output = Output.claimed(
            out, force=force, base=checkpoint.root, needed_bytes=needed_bytes, replaceable=is_export
        )
        with output.building() as built:
            yield built
            output.deliver(built)


@dataclass
class FileExport:
    """A file in the making: write `part`, then put into `facts` what the record beside it is to say."""

    part: Path
    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def export_file(out: Path, *, needed_bytes: int, force: bool) -> Iterator[FileExport]:
    """A file to write beside `out`; on leaving it is flushed to disk and renamed to `out`.

    Its record goes to `out` with ".json" added to the name, just before. `force` replaces files.
    """
    with storage_refusals(out):
        beside = record_of(out)
        for path in (out, beside):
            require_free(path, force)
        require_space(out, out.absolute(), needed_bytes)
        parts = [_part(path) for path in (out, beside)]
        made = FileExport(parts[0])
        try:
            yield made
            write_record(parts[1], made.facts)
            for part, path in ((parts[1], beside), (parts[0], out)):
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
                part.replace(path)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)


def write_file(out: Path, content: bytes, *, force: bool) -> None:
    """A file that appears whole or not at all. `InputError`: nothing was written."""
    with storage_refusals(out):
        require_free(out, force)
        part = _part(out)
        try:
            with create(part) as sink:
                write_all(sink, content, 0)
                os.fsync(sink.fileno())
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)


def require_free(path: Path, force: bool) -> None:
    """`InputError` unless a file may be written at `path`; `force` lets it replace one."""
    if not path.parent.is_dir():
        raise InputError(str(path.parent), "is not a folder", "create it, or choose another path")
    if path.is_dir():
        raise InputError(str(path), "is a folder", "give the name of a file")
    if os.path.lexists(path) and not force:
        raise InputError(str(path), "exists already", "choose another path, or replace it with --force")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def record_of(out: Path) -> Path:
    """Where the record of an exported file lies: lora.safetensors -> lora.safetensors.json."""
    return out.with_name(f"{out.name}.json")


def record(form: str, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What an export says of itself: its format, the digest of its source, the software; no path, no time."""
    return {
        "export": VERSION,
        "format": form,
        "source": {"family": checkpoint.family, "digest": checkpoint.digest},
        "excise": version("excise"),
        **facts,
    }


def write_record(path: Path, facts: Mapping[str, Any]) -> None:
    """Store a record as JSON at `path`, which must not exist: equal facts give equal bytes."""
    text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with create(path) as sink:
        write_all(sink, text.encode("utf-8"), 0)


def is_export(folder: Path) -> bool:
    """Whether `folder` was written by an export: only such a folder is ever replaced."""
    return (folder / RECORD).is_file() and (folder / "model_index.json").is_file()
