"""The stage cache: results stored under a digest of everything that influenced them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler import atomic

CONTENTS = ".contents.json"


def default_root() -> Path:
    """`$EXCISE_CACHE`, else the user's cache folder for excise."""
    chosen = os.environ.get("EXCISE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "excise"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "excise" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "excise"


class StageCache:
    """Content-addressed folders below `root`; an entry is complete or absent, and checked when read."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root is not None else default_root()

    @staticmethod
    def key(parts: Any) -> str:
        """sha256 (hex) of `parts`, any JSON value: name in it everything that influences the result."""
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def has(self, key: str) -> bool:
        """Whether there is an entry, without reading it: what planning asks."""
        return (self._entry(key) / CONTENTS).is_file()

    def get(self, key: str) -> Path | None:
        """The entry's folder, or None. A damaged entry counts as absent and is removed."""
        entry = self._entry(key)
        if not entry.is_dir():
            return None
        if not _intact(entry):
            atomic.remove(entry)
            return None
        return entry

    def put(self, key: str, write: Callable[[Path], None]) -> Path:
        """Let `write` fill an empty folder, then store that folder under `key`; returns the entry.

        Atomic: killed at any instant, the entry is there wholly or not at all. The first result stays:
        where an intact entry is already present, `write` is not called.
        """
        entry = self._entry(key)
        building = self.root / "building"
        with atomic.claim(building / key) as folder:
            present = self.get(key)  # another process may have stored it while we waited for the claim
            if present is not None:
                return present
            write(folder)
            contents = {path: _sha256(folder / path) for path in _files(folder)}
            (folder / CONTENTS).write_text(json.dumps(contents, indent=1, sort_keys=True) + "\n", "utf-8")
            entry.parent.mkdir(parents=True, exist_ok=True)
            atomic.publish(folder, entry)
        atomic.sweep(building)
        return entry

    def _entry(self, key: str) -> Path:
        return self.root / "stages" / key[:2] / key


def _files(folder: Path) -> list[str]:
    """Paths of all files below `folder`, relative, with forward slashes, sorted."""
    return sorted(
        Path(root, name).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder)
        for name in names
    )


def _intact(entry: Path) -> bool:
    """Whether the entry holds exactly the files it was stored with, byte for byte."""
    try:
        contents = json.loads((entry / CONTENTS).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(contents, dict) or [f for f in _files(entry) if f != CONTENTS] != sorted(contents):
        return False
    return all(_sha256(entry / path) == digest for path, digest in contents.items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
