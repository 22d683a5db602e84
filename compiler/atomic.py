"""Folders that appear whole or not at all: built under another name, synced, then renamed into place."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

try:
    from fcntl import LOCK_EX, LOCK_NB, flock

    CAN_LOCK = True
except ImportError:  # pragma: no cover - Windows has no flock; a claim is then only a name
    CAN_LOCK = False

LOCK_SUFFIX = ".lock"


class Claimed(Exception):
    """Another living process is building the same folder."""


@contextlib.contextmanager
def claim(folder: Path, *, wait: bool = True) -> Iterator[Path]:
    """Hold `folder` for this process alone and give it empty; leftovers of killed processes are cleared.

    The claim is an advisory lock on `<folder>.lock`, which the system drops when its holder dies, so a
    killed build never blocks the next one. On leaving, whatever still lies at `folder` is removed.
    With `wait=False` raises `Claimed` when another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(folder.name + LOCK_SUFFIX)
    handle = _locked(lock, wait=wait)
    if handle is None:
        raise Claimed(str(folder))
    try:
        remove(folder)
        folder.mkdir()
        yield folder
    finally:
        remove(folder)
        lock.unlink(missing_ok=True)
        os.close(handle)


def sweep(parent: Path) -> None:
    """Remove the claimed folders below `parent` whose holders are dead."""
    for lock in sorted(parent.glob("*" + LOCK_SUFFIX)):
        handle = _locked(lock, wait=False)
        if handle is None:
            continue
        try:
            remove(lock.with_name(lock.name.removesuffix(LOCK_SUFFIX)))
            lock.unlink(missing_ok=True)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, link or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(built: Path, final: Path, *, replace: bool = False) -> None:
    """Sync everything below `built` to disk, then rename it to `final`; both lie on one disk.

    What is at `final` is a `FileExistsError`, or with `replace` stays until the very moment of the change
    and is then removed.
    """
    sync_tree(built)
    if not os.path.lexists(final):
        built.rename(final)
    elif not replace:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    else:
        _exchange(built, final)
        remove(built)
    sync_folder(final.parent)


def _exchange(one: Path, other: Path) -> None:
    """Swap two paths on one disk: in one indivisible step on Linux and macOS, else in two renames."""
    error = _swap(os.fsencode(one), os.fsencode(other))
    if error == 0:
        return
    if error not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # those say: this file system cannot
        raise OSError(error, os.strerror(error), str(other))
    aside = other.with_name(f".{other.name}.replaced")
    remove(aside)
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    remove(aside)


def _swap(one: bytes, other: bytes) -> int:
    """The system's own exchange of two paths; its error number, 0 when done."""
    calls: dict[str, tuple[str, tuple[object, ...]]] = {
        "linux": ("renameat2", (-100, one, -100, other, 2)),  # AT_FDCWD twice; RENAME_EXCHANGE
        "darwin": ("renamex_np", (one, other, 2)),  # RENAME_SWAP
    }
    if sys.platform not in calls:
        return errno.ENOSYS
    name, arguments = calls[sys.platform]
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if call is None:
        return errno.ENOSYS
    return 0 if call(*arguments) == 0 else ctypes.get_errno()


@contextlib.contextmanager
def flushing() -> Iterator[Callable[[Path], None]]:
    """A function that begins to flush a file or a folder's tree to disk while its caller goes on.

    Leaving waits for all that was begun and raises what the disk refused: the system tells of it only once,
    so `publish`, which syncs everything again and finds little to do, would not hear of it.
    """
    begun: list[Future[None]] = []
    with ThreadPoolExecutor(1) as pool:
        try:
            yield lambda path: begun.append(pool.submit(_sync_tree_or_file, path))
            for flush in begun:
                flush.result()
        finally:  # nothing waits for flushes of what is given up
            pool.shutdown(cancel_futures=True)


def _sync_tree_or_file(path: Path) -> None:
    if path.is_dir():
        sync_tree(path)
    else:
        _sync(path)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root, name))
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    if os.name == "posix":
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(lock: Path, *, wait: bool) -> int | None:
    """An open handle that holds `lock`; None when someone else does and we do not wait."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        if not CAN_LOCK:  # pragma: no cover
            return handle
        try:
            flock(handle, LOCK_EX if wait else LOCK_EX | LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        # The former holder may have unlinked the file while we waited: then our lock is on a ghost.
        try:
            if os.fstat(handle).st_ino == lock.stat().st_ino:
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)
