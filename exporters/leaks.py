"""What nobody means to publish: secrets, and paths of the machine that built an artifact."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SEARCHED = 8 * 2**20  # bytes; text is shorter, and the head of a weight file lies before its numbers
SHORTEST_NEEDLE = 5  # a home of "/" or "/root" would be found everywhere

SECRETS = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
    "a GitHub token": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36,}"),
    "an AWS access key": re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
}
LOCAL_PATHS = re.compile(
    rb"""(?:/home|/Users)/[\w.+-]+/ | /root/[\w.+-] | /site-packages/ | file:///
        | [A-Za-z]:\\{1,2}Users\\{1,2}[\w.+-]+""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Leak:
    """One file with something of the maker's own in it; `what` names the kind and never repeats it."""

    name: str
    what: str


def leaks(files: Iterable[tuple[str, Path]], secrets: Iterable[str] = ()) -> Iterator[Leak]:
    """Files with a secret or a local path in their first 8 MiB; `secrets` are looked for literally."""
    literal = [secret.encode("utf-8") for secret in secrets if secret]
    places = [str(place).encode("utf-8") for place in _places() if len(str(place)) > SHORTEST_NEEDLE]
    for name, path in files:
        with path.open("rb") as file:
            data = file.read(SEARCHED)
        for what, pattern in SECRETS.items():
            if pattern.search(data):
                yield Leak(name, what)
        if any(secret in data for secret in literal):
            yield Leak(name, "the token in use")
        if LOCAL_PATHS.search(data) or any(_has_path(data, place) for place in places):
            yield Leak(name, "a path of the machine that made it")


def _has_path(data: bytes, place: bytes) -> bool:
    """Whether something below the folder `place` is named."""
    return place + b"/" in data or place.replace(b"\\", b"\\\\") + b"\\\\" in data


def _places() -> set[Path]:
    return {Path.home(), Path.cwd(), Path(tempfile.gettempdir())}
