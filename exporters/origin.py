"""What an artifact was made from and under which licence, in Markdown: for the model card and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.artifact import LOCK, SPEC
from compiler.licence import Licence
from editspec.errors import listed
from exporters.markdown import code, text

REBUILD = (
    f"Every input is pinned in `{LOCK}`. The same spec, base, libraries and class of machine give the "
    "same weights again, byte for byte."
)


def origin(lock: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of what and which: the base, the spec, the class of machine with its libraries."""
    base, libraries = lock["base"], lock["libraries"]
    pinned = f"revision `{base['revision']}`, " if "revision" in base else ""
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return [
        ("base", f"{base_name(lock)}, {pinned}sha256 of its files `{base['digest']}`"),
        ("spec", f"sha256 `{lock['spec']}`, in full below and in `{SPEC}`"),
        ("made on", f"{text(lock['device']['class'])}, {versions}"),
    ]


def licence(lock: Mapping[str, Any]) -> Iterator[str]:
    """Paragraphs: the licence of the artifact, what its base's asks for, and what the publisher states."""
    record, base = lock["license"], [Licence(**one) for one in lock["base"]["license"]]
    published = record["published"]
    if published:
        link = f" ({text(published['link'])})" if "link" in published else ""
        yield f"Published under {code(Licence(**published).title)}{link}."
    for one in base:
        forbidden = f" It forbids {listed(one.forbids)}." if one.forbids else ""
        yield (
            f"The base is under {code(one.title)}: as this is a derivative, the base's licence and use "
            f"restrictions go on applying to it.{forbidden}"
        )
    if not base:
        yield "The base states no licence: ask its owner before you share a derivative of it."
    if record["accepted"]:
        named = listed(code(name) for name in record["accepted"])
        yield f"The publisher states in the spec to have the right to go by {named} as published here."


def base_name(lock: Mapping[str, Any]) -> str:
    """The base as a link to its repository, or its local name."""
    base = lock["base"]
    if "repo" in base:
        return f"[{text(base['repo'])}](https://huggingface.co/{base['repo']})"
    return f"The local checkpoint {code(base['path'])}"
