"""Moving byte ranges between open files, inside the kernel where it can."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from editspec.errors import InputError

KERNEL_BYTES = 2**26  # per call, so that an interrupt is answered soon
BUFFER_BYTES = 2**20

#: What copy_file_range answers where it cannot be used: another file system, or one that does not know it.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """A file for reading, unbuffered. Raises `InputError` where it cannot be opened."""
    try:
        file = FileIO(path)
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from error
    with file:
        yield file


@contextlib.contextmanager
def create(path: Path) -> Iterator[FileIO]:
    """A file for writing that must not be there yet; readable by all, whatever the umask says."""
    with _named_in_errors(path), FileIO(path, "x") as file:
        path.chmod(0o644)
        yield file


@contextlib.contextmanager
def reopen(path: Path) -> Iterator[FileIO]:
    """A file that `create` made, opened once more, to write at other places in it at the same time."""
    with _named_in_errors(path), FileIO(path, "r+") as file:
        yield file


@contextlib.contextmanager
def _named_in_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None:  # a call on a handle does not know what it failed on
            error.filename = str(path)
        raise


def read_exactly(source: FileIO, buffer: memoryview, at: int, path: Path) -> None:
    """Fill `buffer` from offset `at` of `source`. Raises `InputError` naming `path` where it ends early."""
    source.seek(at)
    while buffer:
        done = source.readinto(buffer)
        if not done:
            _refuse_shrunk(path)
        buffer = buffer[done:]


def write_all(sink: FileIO, data: bytes | memoryview, at: int) -> None:
    """Write all of `data` at the offset `at`. Raises `OSError` where the disk refuses."""
    sink.seek(at)
    left = memoryview(data)
    while left:
        left = left[sink.write(left) or 0 :]


def copy_range(source: FileIO, sink: FileIO, start: int, stop: int, shift: int, path: Path) -> None:
    """Copy the bytes [start, stop) of `source` to the same place plus `shift` in `sink`.

    Raises `InputError` naming `path`, the source, where it ends early; `OSError` where the disk refuses.
    """
    position = _copy_in_kernel(source, sink, start, stop, shift)
    buffer = memoryview(bytearray(min(BUFFER_BYTES, stop - position)))
    while position < stop:
        piece = buffer[: stop - position]
        read_exactly(source, piece, position, path)
        write_all(sink, piece, position + shift)
        position += len(piece)


def _copy_in_kernel(source: FileIO, sink: FileIO, start: int, stop: int, shift: int) -> int:
    """How far it got: to `stop`, or to where this file system would not go on."""
    if not hasattr(os, "copy_file_range"):  # pragma: no cover - only Linux has it
        return start
    handles = source.fileno(), sink.fileno()
    while start < stop:
        try:
            done = os.copy_file_range(*handles, min(stop - start, KERNEL_BYTES), start, start + shift)
        except OSError as error:
            if error.errno in _CANNOT:
                break
            raise
        if done == 0:  # the file's end, or a file system that pretends so: reading will tell
            break
        start += done
    return start


def _refuse_shrunk(path: Path) -> None:
    raise InputError(str(path), "became shorter while it was read", "leave the base alone while compiling")
