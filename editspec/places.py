"""Places in a JSON text: spans of characters, and the JSON pointers that name what stands there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Span:
    """Characters `start` to `stop` of the text."""

    start: int
    stop: int


@dataclass(frozen=True)
class Flaw:
    """A mistake found while scanning."""

    span: Span
    pointer: str
    message: str
    remedy: str = ""


@dataclass
class Scan:
    """A scanned text: its value, where each value and key stood by JSON pointer, what is wrong."""

    text: str
    value: Any = None
    values: dict[str, Span] = field(default_factory=dict)
    keys: dict[str, Span] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)
    complete: bool = True


def child(pointer: str, key: str | int) -> str:
    """The JSON pointer (RFC 6901) of a member or an item."""
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"
