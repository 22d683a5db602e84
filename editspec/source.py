"""A spec's text together with the place of every JSON pointer in it."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property

from editspec.errors import Diagnostic
from editspec.places import Flaw, Scan, Span
from editspec.scanner import scan


class Source:
    """The text of a file, scanned once."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text

    @cached_property
    def scan(self) -> Scan:
        """What the strict scanner found."""
        return scan(self.text)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(i + 1 for i, c in enumerate(self.text) if c == "\n")]

    def flaws(self) -> list[Diagnostic]:
        """Mistakes in the JSON itself."""
        return [self._at(flaw) for flaw in self.scan.flaws]

    def diagnostic(self, pointer: str, message: str, remedy: str = "", *, key: bool = False) -> Diagnostic:
        """A diagnostic at the value of `pointer` (or its key); if nothing is there, at what would hold it."""
        place = pointer
        places = self.scan.keys if key and pointer in self.scan.keys else self.scan.values
        while place and place not in places:
            place = place.rpartition("/")[0]
        span = places.get(place, Span(0, 1))
        if places is self.scan.values and self.text[span.start : span.start + 1] in ("{", "["):
            span = Span(span.start, span.start + 1)  # point at the bracket, not at everything inside
        return self._at(Flaw(span, pointer, message, remedy))

    def _at(self, flaw: Flaw) -> Diagnostic:
        line = bisect_right(self._line_starts, flaw.span.start)
        start = self._line_starts[line - 1]
        stop = self._line_starts[line] - 1 if line < len(self._line_starts) else len(self.text)
        return Diagnostic(
            file=self.file,
            line=line,
            column=flaw.span.start - start + 1,
            pointer=flaw.pointer,
            message=flaw.message,
            remedy=flaw.remedy,
            source_line=self.text[start:stop].rstrip("\r"),
            width=flaw.span.stop - flaw.span.start,
        )
