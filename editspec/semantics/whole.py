"""Checks of the spec as one document: ids, lengths, licence."""

from __future__ import annotations

from collections.abc import Iterator

from editspec.errors import quoted
from editspec.semantics.walk import Document, Finding, texts

LONGEST_PROMPT = 75  # words: CLIP's window is 77 tokens with start and end, and no token spans two words


def ids_are_unique(spec: Document) -> Iterator[Finding]:
    """Plans, reports and other parts of the spec speak of edits, gates and evaluators by id."""
    for part in ("edits", "gates", "evaluators"):
        seen: dict[str, int] = {}
        for index, entry in enumerate(spec[part]):
            first = seen.setdefault(
                entry["id"].casefold(), index
            )  # ids become file names; not all disks know case
            if first != index:
                yield (
                    f"/{part}/{index}/id",
                    f"id {quoted(entry['id'])} is already that of /{part}/{first}",
                    "give each an 'id' of its own",
                )


def prompts_fit_the_window(spec: Document) -> Iterator[Finding]:
    """A lower bound that needs no tokenizer; the planner counts real tokens."""
    for part in ("edits", "preserve", "gates"):
        for pointer, text in texts(f"/{part}", spec[part]):
            words = len(text.split())
            if words > LONGEST_PROMPT:
                yield (
                    pointer,
                    f"{words} words do not fit the text encoder's window of {LONGEST_PROMPT} tokens",
                    "shorten it; what lies past the window is never read",
                )


def other_licences_are_named(spec: Document) -> Iterator[Finding]:
    """The Hub wants a name and a link with licence id "other", and only then."""
    publish = spec["publish"]
    for key in ("license_name", "license_link"):
        if publish.get("license") == "other" and key not in publish:
            yield "/publish/license", f"licence 'other' needs {quoted(key)}"
        elif publish.get("license") != "other" and key in publish:
            yield (
                f"/publish/{key}",
                f"{quoted(key)} goes with licence 'other' only",
                'write "license": "other", or drop it',
            )
