"""Ways through a spec's document that the semantic checks share: its edits, their words, their directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from editspec.defaults import plain
from editspec.places import child

Document = dict[str, Any]
Finding = tuple[str, str] | tuple[str, str, str]  # JSON pointer, message, remedy


def edits(spec: Document, *kinds: str) -> Iterator[tuple[str, Document]]:
    """Edits of these kinds (or all), each with its pointer."""
    for index, edit in enumerate(spec["edits"]):
        if not kinds or edit["edit"] in kinds:
            yield f"/edits/{index}", edit


def own_words(pointer: str, edit: Document) -> Iterator[tuple[str, str]]:
    """Pointer and text of what an erase or ablate edit removes."""
    yield f"{pointer}/concept", edit["concept"]
    for index, alias in enumerate(edit.get("aliases", [])):
        yield f"{pointer}/aliases/{index}", alias


def directions(spec: Document) -> Iterator[tuple[str, Document]]:
    """Every direction of shift and respond edits."""
    for pointer, edit in edits(spec, "shift"):
        if isinstance(edit["direction"], list):
            yield from ((f"{pointer}/direction/{i}", d) for i, d in enumerate(edit["direction"]))
        else:
            yield f"{pointer}/direction", edit["direction"]
    for pointer, edit in edits(spec, "respond"):
        for index, phrase in enumerate(edit["phrases"]):
            if "direction" in phrase:
                yield f"{pointer}/phrases/{index}/direction", phrase["direction"]


def texts(pointer: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every string value with its pointer."""
    if isinstance(value, str):
        yield pointer, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(child(pointer, key), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from texts(child(pointer, index), item)


def concept_of(entry: str | Document) -> str:
    """The concept of an entry that is a word or {"concept": word, "weight": ...}."""
    return entry if isinstance(entry, str) else str(entry["concept"])


def names(text: str, concept: str) -> bool:
    """Whether a text contains a concept, word by word."""
    return f" {plain(concept)} " in f" {plain(text)} "


def edit_of(pointer: str) -> str:
    """The pointer of the edit that a pointer lies in."""
    return "/".join(pointer.split("/")[:3])
