"""Puts the machine into one state before each timed turn, so that turns can be compared.

Three things decide a copy's speed more than the program that makes it: whether the disk still writes what an
earlier turn left, whether the source lies in the system's cache, and, on a virtual machine, whether free
memory is at hand: what was free for two seconds goes back to the host, and having it again costs several
times as much as filling it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_CHILD = """
import sys
for path in sys.argv[2:]:
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 22):
            pass
held = [b"\\1" * (1 << 22) for _ in range(int(sys.argv[1]) >> 22)]
"""


def ready(files: Iterable[Path], memory_bytes: int) -> None:
    """Let the disk come to rest, read `files`, and have `memory_bytes` of free memory at hand.

    In a child process, which leaves all of it free and does not count for the caller's peak.
    """
    os.sync()
    paths = [str(path) for path in files]
    subprocess.run([sys.executable, "-c", _CHILD, str(memory_bytes), *paths], check=True)
