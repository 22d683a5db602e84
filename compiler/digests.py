"""sha256 of files, in parallel, and remembered as long as the file system says that nothing changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from compiler.cache import default_root
from editspec.errors import InputError

MAX_THREADS = 8  # beyond that the disk is the limit
PIECE = 2**24  # bytes, 10 ms of hashing
SETTLED_SECONDS = 0.05  # clocks of file systems tick every few ms: within one tick a second write would hide

_DIGEST = re.compile(r"[0-9a-f]{64}")


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """sha256 (hex) of each file. Raises `InputError` for one that cannot be read.

    A file that kept device, inode, size, change and modification time since it was last read is not read
    again. The change time cannot be set by a program, so even a write that restores the others is seen.
    """
    paths = list(paths)
    # Large files first: then the last thread to finish does not start on one late.
    paths.sort(key=lambda path: (-_size(path), path))
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(file_digest, paths), strict=True))


def file_digest(path: Path) -> str:
    """sha256 (hex) of one file, as `file_digests`."""
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            memory = _memory(before)
            known = _recall(memory)
            if known is not None:
                return known
            started = time.time()
            digest = _sha256(file, before.st_size)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from error
    if _memory(after) != memory:
        raise InputError(str(path), "changed while it was read", "leave the files alone while compiling")
    if started - before.st_ctime > SETTLED_SECONDS:
        _remember(memory, digest)
    return digest


def _sha256(file: FileIO, size: int) -> str:
    """In large pieces: a thread that hashes small ones waits at each for those that run Python code."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(max(size, 1), PIECE)))
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it will say what is wrong


def _memory(status: os.stat_result) -> Path:
    """Where the digest of a file with this status is kept."""
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    name = hashlib.sha256(repr(facts).encode("ascii")).hexdigest()
    return default_root() / "digests" / name[:2] / name


def _recall(memory: Path) -> str | None:
    try:
        text = memory.read_text("ascii")
    except (OSError, ValueError):
        return None
    return text if _DIGEST.fullmatch(text) else None


def _remember(memory: Path, digest: str) -> None:
    """Losing a digest only costs time, so a full or read-only disk is no error here."""
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=memory.parent)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(digest)
        Path(temporary).replace(memory)
