"""What a user can mend: errors that say where, what and how, shown the way a good compiler does."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_WIDEST_EXCERPT = 120


class InputError(Exception):
    """Bad input: where, what is wrong, and what would put it right. The command line exits with 2."""

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        super().__init__(where, what, remedy)
        self.where = where
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{printable(self.where)}: {printable(self.what)}" if self.where else printable(self.what)
        return f"{text}\n  help: {printable(self.remedy)}" if self.remedy else text

    def as_dict(self) -> dict[str, Any]:
        """The same as data, for `--json`."""
        return {"where": self.where, "message": self.what, "remedy": self.remedy}


class GateFailed(Exception):
    """A gate of the spec did not hold. The command line exits with 3."""


@dataclass(frozen=True)
class Diagnostic:
    """One mistake at one place of a spec. Line and column count from 1, columns in characters."""

    file: str
    line: int
    column: int
    pointer: str
    message: str
    remedy: str
    source_line: str
    width: int = 1

    def render(self) -> str:
        """Place, message, source line with carets below the mistake, JSON pointer and remedy."""
        lines = [f"{printable(self.file)}:{self.line}:{self.column}: error: {printable(self.message)}"]
        excerpt, carets = _excerpt(self.source_line, self.column - 1, self.width)
        gutter = " " * len(str(self.line))
        lines += [f" {gutter} |", f" {self.line} | {excerpt}".rstrip(), f" {gutter} | {carets}"]
        if self.pointer:
            lines.append(f" {gutter} = at: {printable(self.pointer)}")
        if self.remedy:
            lines.append(f" {gutter} = help: {printable(self.remedy)}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same as data, for `--json`."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "pointer": self.pointer,
            "message": self.message,
            "remedy": self.remedy,
        }


class SpecErrors(InputError):
    """Everything that is wrong with a spec, in the order of the file."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        ordered = sorted(set(diagnostics), key=lambda d: (d.file, d.line, d.column, d.message))
        self.diagnostics: tuple[Diagnostic, ...] = tuple(ordered)
        count = len(ordered)
        super().__init__(ordered[0].file if ordered else "", f"{count} error{'s' if count != 1 else ''}")

    def render(self) -> str:
        """All diagnostics, then how many there are."""
        blocks = [diagnostic.render() for diagnostic in self.diagnostics]
        return "\n\n".join([*blocks, f"{self.what} in {printable(self.where)}"])

    def __str__(self) -> str:
        return self.render()

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "diagnostics": [d.as_dict() for d in self.diagnostics]}


def printable(text: str) -> str:
    """Text that cannot drive a terminal: control and direction characters become visible marks."""
    return "".join(
        c
        if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def quoted(value: str, longest: int = 60) -> str:
    """A user's text inside a message: in quotes, shortened."""
    return f"'{value}'" if len(value) <= longest else f"'{value[: longest - 1]}…'"


def listed(words: Iterable[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    options = {candidate.casefold(): candidate for candidate in known}
    plain = word.casefold()
    if plain in options:
        return options[plain]
    found = difflib.get_close_matches(plain, options, n=1, cutoff=0.6)
    return options[found[0]] if found else None


def did_you_mean(word: str, known: Sequence[str], noun: str = "on offer", longest: int = 30) -> str:
    """A remedy: the likeliest known word, else what is on offer."""
    guess = closest(word, known)
    if guess is not None:
        return f"did you mean {quoted(guess)}?"
    if not known:
        return ""
    shown = [quoted(k) for k in sorted(known)[:longest]] + (["…"] if len(known) > longest else [])
    return f"{noun}: {listed(shown)}"


def _excerpt(line: str, start: int, width: int) -> tuple[str, str]:
    """The source line, cut to a window around the mistake if long, and the carets that go below it."""
    line = "".join(" " if c == "\t" else c for c in line)
    start = min(start, len(line))
    first = 0
    if len(line) > _WIDEST_EXCERPT:
        first = max(0, min(start - _WIDEST_EXCERPT // 3, len(line) - _WIDEST_EXCERPT))
    last = min(len(line), first + _WIDEST_EXCERPT)
    width = max(1, min(width, last - start))
    head, tail = ("…" if first else ""), ("…" if last < len(line) else "")
    before = printable(line[first:start])
    marked = printable(line[start : start + width])
    carets = " " * (len(head) + _columns(before)) + "^" * max(1, _columns(marked))
    return head + printable(line[first:last]) + tail, carets


def _columns(text: str) -> int:
    """Terminal columns: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )
