"""Where the anchor prompts of an ablation come from, and what the student reads in their place.

Templates of the concept's kind, a list in the spec, or a text file as a language model writes it. Every
source ends as the same thing: a prompt of the anchor, and that prompt with the concept where the anchor was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from editspec import Ablate
from editspec.defaults import plain
from editspec.errors import InputError, quoted
from editspec.templates import fill

MOST_BYTES = 1 << 20  # of a file of prompts: 10,000 lines and more
# "12. a cat", "- a cat", "* a cat": how language models number and list.
_LISTED = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+")
_QUOTES = "\"'“”‘’"
STYLE_ENDING = " in {} style"


@dataclass(frozen=True)
class AnchorPrompt:
    """A prompt of the anchor, and those that must come to give the same: of the concept and its aliases."""

    anchor: str
    students: tuple[str, ...]


class Unusable(Exception):
    """A prompt that cannot be an anchor's: why."""


def anchor_prompts(edit: Ablate, folder: Path) -> tuple[AnchorPrompt, ...]:
    """All anchor prompts of `edit`, none twice; `folder` is the spec's. Raises InputError for `problems`."""
    for key, message in problems(edit, folder):
        raise InputError(f"edit '{edit.id}', {key}", message)
    found: dict[str, AnchorPrompt] = {}
    for _, prompt in _sources(edit, folder):
        anchor, template = _slot(prompt, edit)
        students = tuple(fill(template, word) for word in (edit.concept, *edit.aliases))
        found.setdefault(anchor, AnchorPrompt(anchor, students))
    return tuple(found.values())


def problems(edit: Ablate, folder: Path) -> list[tuple[str, str]]:
    """What is wrong with the sources of anchor prompts: (key of the edit, message) pairs."""
    found = []
    try:
        sources = list(_sources(edit, folder))
    except InputError as error:
        return [("prompts_file", error.what)]
    for key, prompt in sources:
        try:
            _slot(prompt, edit)
        except Unusable as reason:
            found.append((key, str(reason)))
    if not sources:
        found.append(("prompts_file", "holds no prompt"))
    return found


def file_digest(edit: Ablate, folder: Path) -> str | None:
    """sha256 of the file of prompts, if the edit has one: its text decides the result, not its name."""
    return hashlib.sha256(_read(edit, folder)).hexdigest() if edit.prompts_file else None


def _sources(edit: Ablate, folder: Path) -> Iterator[tuple[str, str]]:
    """(key in the edit, prompt or template) of every source that the edit names."""
    if not edit.prompts and not edit.prompts_file:
        yield from (("templates", template) for template in edit.templates or ("{}",))
    yield from ((f"prompts/{number}", prompt) for number, prompt in enumerate(edit.prompts))
    if edit.prompts_file:
        yield from (("prompts_file", line) for line in _lines(_read(edit, folder), edit, folder))


def _slot(prompt: str, edit: Ablate) -> tuple[str, str]:
    """The anchor's prompt, and the template that takes the concept in the anchor's place."""
    named = next((word for word in (edit.concept, *edit.aliases) if _at(prompt, word)), None)
    if named is not None:
        raise Unusable(f"the anchor prompt {quoted(prompt)} names {quoted(named)}, which this edit ablates")
    if "{}" in prompt:
        return fill(prompt, edit.anchor), prompt
    if place := _at(prompt, edit.anchor):
        return prompt, f"{prompt[: place[0]]}{{}}{prompt[place[1] :]}"
    if edit.kind == "style":
        return prompt, prompt + STYLE_ENDING
    raise Unusable(
        f"the anchor prompt {quoted(prompt)} has neither {{}} nor the anchor {quoted(edit.anchor)}"
    )


def _at(prompt: str, word: str) -> tuple[int, int] | None:
    """Where the last occurrence of `word`, as whole words, stands in the prompt."""
    pattern = r"\s+".join(re.escape(part) for part in plain(word).split())
    found = list(re.finditer(rf"(?<!\w){pattern}(?!\w)", prompt, re.IGNORECASE))
    return found[-1].span() if found else None


def _read(edit: Ablate, folder: Path) -> bytes:
    path = folder / (edit.prompts_file or "")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise InputError(str(path), f"has {len(content)} bytes; a file of prompts has at most {MOST_BYTES}")
    return content


def _lines(content: bytes, edit: Ablate, folder: Path) -> Sequence[str]:
    """The prompts of a text file: a line each, without numbers, bullets, quotes, blank lines and # lines."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(str(folder / (edit.prompts_file or "")), f"is not UTF-8: {error.reason}") from error
    lines = (_LISTED.sub("", line).strip().strip(_QUOTES).strip() for line in text.splitlines())
    kept = [line for line in lines if line and not line.startswith("#")]
    for line in kept:
        braces = line.replace("{}", "", 1)
        if "{" in braces or "}" in braces:
            what = f"the prompt {quoted(line)} has a brace that is not a single {{}}"
            raise InputError(str(folder / (edit.prompts_file or "")), what)
    return kept
