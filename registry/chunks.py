"""Cuts a file into the byte ranges that are stored once: a safetensors file at its tensors.

Where the cuts lie depends on the header alone, so two variants of one base are cut alike and share every
tensor that no edit touched. Other files are cut into equal pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compiler.safetensors_file import read_header

PIECE_BYTES = 16 * 2**20  # the most that is in memory at once, and one request of an object store
SMALL_BYTES = 4096  # tensors up to here (biases, norms) are stored together with their neighbours ...
RUN_BYTES = 65536  # ... up to this size: one object each would cost more than it saves


def cut(path: Path) -> tuple[range, ...]:
    """Byte ranges that tile the file, each at most `PIECE_BYTES` long; () for an empty file.

    Raises `InputError` for a `.safetensors` file that the strict reader refuses.
    """
    if path.suffix != ".safetensors":
        return tuple(_pieces(range(path.stat().st_size)))
    entries, data_start = read_header(path)
    runs = [range(data_start)]
    room = 0  # bytes that the last run may still take in; none after the header or a large tensor
    for entry in entries.values():
        size = entry.stop - entry.start
        small = size <= SMALL_BYTES
        if small and size <= room:
            runs[-1] = range(runs[-1].start, entry.stop)
            room -= size
        else:
            runs.append(range(entry.start, entry.stop))
            room = RUN_BYTES - size if small else 0
    return tuple(piece for run in runs for piece in _pieces(run))


def _pieces(run: range) -> Iterator[range]:
    for start in range(run.start, run.stop, PIECE_BYTES):
        yield range(start, min(start + PIECE_BYTES, run.stop))
