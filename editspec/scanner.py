"""Reads JSON strictly and remembers where everything stood: messages need it, and `json` forgets."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from editspec.places import Flaw, Scan, Span, child

DEEPEST = 64  # a spec is four levels deep; more is a mistake or an attack on the parser's stack

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?P<real>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*|-Infinity")
_NUMBERISH = re.compile(r"[-+]?[0-9.][0-9A-Za-z_.+-]*")
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_CONSTANTS = {"true": True, "false": False, "null": None}


class _Stop(Exception):
    """The text is no JSON from here on."""


def scan(text: str) -> Scan:
    """Scan a JSON text. Never raises: mistakes are in `flaws`; broken syntax leaves `complete` False."""
    result = Scan(text)
    try:
        _Scanner(text, result).document()
    except _Stop:
        result.complete = False
    return result


class _Scanner:
    def __init__(self, text: str, result: Scan) -> None:
        self.text = text
        self.at = 0
        self.result = result

    def document(self) -> None:
        self.space()
        if self.at == len(self.text):
            self.stop("", "the file is empty", 'a spec is a JSON object: {"editspec": 1, ...}')
        self.result.value = self.value("", 0)
        self.space()
        if self.at < len(self.text):
            self.stop(
                "", "text after the end of the JSON value", "a file holds one value; check the braces above"
            )

    def value(self, pointer: str, depth: int) -> Any:
        start = self.at
        if depth > DEEPEST:
            self.stop(pointer, f"nested more than {DEEPEST} levels deep")
        here = self.text[start : start + 1]
        if here == "{":
            found: Any = self.members(pointer, depth)
        elif here == "[":
            found = self.items(pointer, depth)
        elif here == '"':
            found = self.string(pointer)
        elif here in "-0123456789" and here and self.text[start : start + 2] != "-I":
            found = self.number(pointer)
        else:
            found = self.constant(pointer)
        self.result.values[pointer] = Span(start, self.at)
        return found

    def members(self, pointer: str, depth: int) -> dict[str, Any]:
        opened = self.at
        found: dict[str, Any] = {}
        self.at += 1
        self.space()
        if self.take("}"):
            return found
        while True:
            start = self.at
            if not self.text.startswith('"', start):
                self.expected_key(pointer, opened)
            key = self.string(pointer)
            place = child(pointer, key)
            if key in found:
                first = self.text.count("\n", 0, self.result.keys[place].start) + 1
                self.flaw(
                    Span(start, self.at),
                    place,
                    f"key '{key}' is here twice",
                    f"it is first on line {first}; keep one",
                )
            self.result.keys.setdefault(place, Span(start, self.at))
            self.space()
            if not self.take(":"):
                self.stop(pointer, f"expected ':' after the key '{key}'{self.instead()}")
            self.space()
            found[key] = self.value(place, depth + 1)
            self.space()
            if self.take("}"):
                return found
            self.comma(pointer, opened, "}")
            if self.text.startswith("}", self.at):
                self.trailing_comma(pointer)

    def items(self, pointer: str, depth: int) -> list[Any]:
        opened = self.at
        found: list[Any] = []
        self.at += 1
        self.space()
        if self.take("]"):
            return found
        while True:
            found.append(self.value(child(pointer, len(found)), depth + 1))
            self.space()
            if self.take("]"):
                return found
            self.comma(pointer, opened, "]")
            if self.text.startswith("]", self.at):
                self.trailing_comma(pointer)

    def string(self, pointer: str) -> str:
        opened = self.at
        parts: list[str] = []
        self.at += 1
        while True:
            plain = _PLAIN.match(self.text, self.at)
            assert plain is not None  # the pattern matches the empty string
            parts.append(plain.group())
            self.at = plain.end()
            here = self.text[self.at : self.at + 1]
            if here == '"':
                self.at += 1
                return "".join(parts)
            if here == "\\":
                parts.append(self.escape(pointer))
            elif here in ("", "\n", "\r"):
                self.at = opened
                self.stop(pointer, "this string is never closed", 'a string ends with " on the same line')
            else:
                self.stop(
                    pointer,
                    f"control character U+{ord(here):04X} in a string",
                    f"write it as \\u{ord(here):04x}",
                )

    def escape(self, pointer: str) -> str:
        letter = self.text[self.at + 1 : self.at + 2]
        if letter in _ESCAPES and letter:
            self.at += 2
            return _ESCAPES[letter]
        if letter != "u":
            self.stop(
                pointer, f"no escape '\\{letter}' in JSON", "a backslash itself is written \\\\", width=2
            )
        high = self.code_unit(pointer)
        if 0xD800 <= high <= 0xDBFF and self.text.startswith("\\u", self.at):
            low = self.code_unit(pointer)
            if 0xDC00 <= low <= 0xDFFF:
                return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
            self.at -= 6
        if 0xD800 <= high <= 0xDFFF:
            self.at -= 6
            self.stop(pointer, f"\\u{high:04x} is half a surrogate pair and no character", width=6)
        return chr(high)

    def code_unit(self, pointer: str) -> int:
        digits = _HEX.match(self.text, self.at + 2)
        if digits is None:
            self.stop(pointer, "\\u takes four hex digits", width=2)
        self.at = digits.end()
        return int(digits.group(), 16)

    def number(self, pointer: str) -> int | float:
        start = self.at
        match = _NUMBER.match(self.text, start)
        rough = _NUMBERISH.match(self.text, start)
        if match is None or (rough is not None and rough.end() > match.end()):
            written = rough.group() if rough else "-"
            self.stop(
                pointer,
                f"'{written[:40]}' is no JSON number",
                "digits, with no leading zero, plus sign or underscore",
                len(written),
            )
        self.at = match.end()
        written = match.group()
        if len(written) > 400:
            self.flaw(Span(start, self.at), pointer, "a number of more than 400 characters")
            return 0
        if not match.group("real"):
            return int(written)
        value = float(written)
        if value in (float("inf"), float("-inf")):
            self.flaw(Span(start, self.at), pointer, f"{written[:40]} is too large for a number")
            return 0.0
        return value

    def constant(self, pointer: str) -> bool | None:
        word = _WORD.match(self.text, self.at)
        if word is None:
            here = self.text[self.at : self.at + 1]
            if here == "'":
                self.stop(pointer, "strings take double quotes in JSON", "replace ' with \"")
            if self.text.startswith(("//", "/*", "#"), self.at):
                self.comment(pointer)
            self.stop(pointer, f"expected a value{self.instead()}")
        written = word.group()
        if written in _CONSTANTS:
            self.at = word.end()
            return _CONSTANTS[written]
        if written.lower() in _CONSTANTS:
            remedy = f"write {written.lower()}"
        elif written == "None":
            remedy = "write null, or leave the key out"
        elif written.lower() in ("nan", "infinity", "-infinity"):
            self.flaw(
                Span(self.at, word.end()),
                pointer,
                f"{written} is no JSON number",
                "every number in a spec is finite",
            )
            self.at = word.end()
            return None
        else:
            remedy = f'a string takes double quotes: "{written[:40]}"'
        return self.stop(pointer, f"'{written[:40]}' is no JSON value", remedy, len(written))

    def expected_key(self, pointer: str, opened: int) -> NoReturn:
        word = _WORD.match(self.text, self.at)
        if word is not None:
            self.stop(
                pointer,
                f"the key {word.group()[:40]} takes double quotes",
                f'write "{word.group()[:40]}"',
                len(word.group()),
            )
        if self.text.startswith("'", self.at):
            self.stop(pointer, "keys take double quotes in JSON", "replace ' with \"")
        self.unclosed(pointer, opened, "}")
        self.stop(pointer, f"expected a key in double quotes{self.instead()}")

    def comma(self, pointer: str, opened: int, closer: str) -> None:
        if self.take(","):
            self.space()
            return
        if self.at < len(self.text) and self.text[self.at] in '"{[-0123456789tfn':
            self.at = len(self.text[: self.at].rstrip(" \t\r\n"))  # just behind the value before
            self.stop(pointer, "a comma is missing here")
        self.unclosed(pointer, opened, closer)
        self.stop(pointer, f"expected ',' or '{closer}'{self.instead()}")

    def unclosed(self, pointer: str, opened: int, closer: str) -> None:
        if self.at >= len(self.text):
            self.at = opened
            self.stop(
                pointer, f"this '{self.text[opened]}' is never closed", f"the file ends before its '{closer}'"
            )

    def trailing_comma(self, pointer: str) -> NoReturn:
        self.at = self.text.rindex(",", 0, self.at)
        self.stop(
            pointer,
            "a comma before the closing bracket",
            "JSON takes no comma after the last item; remove it",
        )

    def comment(self, pointer: str) -> NoReturn:
        self.stop(pointer, "JSON has no comments", "remove it; a name or an id can say what a part is for")

    def space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        assert found is not None  # the pattern matches the empty string
        self.at = found.end()
        if self.text.startswith(("//", "/*", "#"), self.at):
            self.comment("")

    def take(self, character: str) -> bool:
        if self.text.startswith(character, self.at):
            self.at += 1
            return True
        return False

    def instead(self) -> str:
        here = self.text[self.at : self.at + 1]
        return f", got '{here}'" if here else ", got the end of the file"

    def flaw(self, span: Span, pointer: str, message: str, remedy: str = "") -> None:
        self.result.flaws.append(Flaw(span, pointer, message, remedy))

    def stop(self, pointer: str, message: str, remedy: str = "", width: int = 1) -> NoReturn:
        self.flaw(Span(self.at, self.at + width), pointer, message, remedy)
        raise _Stop
