"""What really lies in a folder: ordinary files, their sizes and digests, and whatever is none."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from editspec.errors import InputError

MAX_THREADS = 8  # beyond that the disk is the limit

# What downloading adds to a folder (the Hub client's bookkeeping); never part of what was built.
DOWNLOAD_FILES = (".gitattributes",)
DOWNLOAD_FOLDERS = (".cache/huggingface",)


@dataclass(frozen=True)
class Inventory:
    """`files`: name -> size in bytes. `strange`: name -> what lies there instead of an ordinary file.

    Names are relative, with forward slashes, sorted; no link is followed out of the folder.
    """

    folder: Path
    files: Mapping[str, int]
    strange: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> Inventory:
        """Look at every entry below `folder`, without download bookkeeping. `InputError` if it is none."""
        files: dict[str, int] = {}
        strange: dict[str, str] = {}
        blobs = _blobs(folder)
        try:
            _look(folder, "", blobs, files, strange)
        except OSError as error:
            raise InputError(str(error.filename or folder), f"cannot be read: {error.strerror}") from error
        return cls(folder, dict(sorted(files.items())), dict(sorted(strange.items())))

    def digests(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """sha256 (hex) of these files, or of all; read from the disk now, never remembered."""
        wanted = sorted(self.files if names is None else names, key=lambda name: -self.files[name])
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            found = dict(zip(wanted, pool.map(self._digest, wanted), strict=True))
        return dict(sorted(found.items()))

    def _digest(self, name: str) -> str:
        path = self.folder / name
        try:
            with path.open("rb", buffering=0) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(str(path), f"cannot be read: {error.strerror}") from error


def _look(
    folder: Path, prefix: str, blobs: Path | None, files: dict[str, int], strange: dict[str, str]
) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                if name not in DOWNLOAD_FOLDERS:
                    _look(Path(entry.path), f"{name}/", blobs, files, strange)
            elif stat.S_ISREG(status.st_mode):
                if name not in DOWNLOAD_FILES:
                    files[name] = status.st_size
            elif stat.S_ISLNK(status.st_mode) and _is_blob(Path(entry.path), blobs):
                files[name] = entry.stat().st_size
            else:
                strange[name] = _kind(status.st_mode)


def _blobs(folder: Path) -> Path | None:
    """The store that a snapshot in the Hub's cache links into, where `folder` is such a snapshot."""
    inside = folder.resolve()
    blobs = inside.parent.parent / "blobs"
    return blobs if inside.parent.name == "snapshots" and blobs.is_dir() else None


def _is_blob(link: Path, blobs: Path | None) -> bool:
    target = link.resolve()
    return blobs is not None and target.parent == blobs and target.is_file()


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
