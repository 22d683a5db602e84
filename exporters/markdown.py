"""Markdown in which words of a spec stay words: tables, text, inline code, fences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of cells as they are: escape words of a spec first."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def text(words: str) -> str:
    """Words from a spec, as words: nothing in them acts as Markdown or HTML, or ends a table's cell."""
    flat = " ".join(words.split())
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", flat)


def code(words: str) -> str:
    """Words from a spec as inline code, safe in a table."""
    flat = " ".join(words.split()).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall(r"`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}"


def fenced(content: str) -> str:
    """JSON in a fence that nothing in it can close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", content)), default=0))
    return f"{fence}json\n{content}\n{fence}"
