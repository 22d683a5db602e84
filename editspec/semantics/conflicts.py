"""Checks of edits against each other and against what the spec keeps."""

from __future__ import annotations

from collections.abc import Iterator

from editspec.defaults import plain
from editspec.errors import did_you_mean, quoted
from editspec.semantics.walk import Document, Finding, concept_of, edit_of, edits, own_words


def nothing_is_edited_twice(spec: Document) -> Iterator[Finding]:
    """A word twice by one method, or both erased and ablated. Two erasing methods may share a concept."""
    seen: dict[str, list[tuple[str, str, str]]] = {}
    for pointer, edit in edits(spec, "erase", "ablate"):
        scope = plain(edit.get("from", ""))
        method = "ablate" if edit["edit"] == "ablate" else f"erase/{edit['method']}/{scope}"
        for place, word in own_words(pointer, edit):
            earlier = seen.setdefault(plain(word), [])
            clash = next((c for c in (_clash(pointer, method, e) for e in earlier) if c), None)
            if clash is not None:
                yield place, f"{quoted(word)} {clash[0]}", clash[1]
            earlier.append((method, word, place))


def _clash(pointer: str, method: str, earlier: tuple[str, str, str]) -> tuple[str, str] | None:
    """What is wrong, and the remedy, if a word edited `earlier` comes again in the edit at `pointer`."""
    other, written, where = earlier
    if edit_of(where) == pointer:
        return f"is in this edit already, as {quoted(written)}", "name it once"
    if other == method:
        return f"is already edited in the same way at {where}", "drop one of the two"
    scoped = any(m.startswith("erase/") and not m.endswith("/") for m in (other, method))
    if "ablate" in (other, method) and not scoped:
        return (
            f"is both erased and ablated: see {where}",
            "erase removes a concept, ablate turns it into its anchor; choose one",
        )
    return None


def nothing_removed_is_kept(spec: Document) -> Iterator[Finding]:
    """An edit takes away what the spec keeps, what another edit keeps, or what another edit leads to."""
    gone: dict[str, str] = {}
    for pointer, edit in edits(spec, "erase", "ablate"):
        if "from" not in edit:  # the hat goes from the cowboy; hats may stay
            for place, word in own_words(pointer, edit):
                gone.setdefault(plain(word), place)
    for place, word, role in _wanted(spec):
        taker = gone.get(plain(word))
        if taker is not None and place != f"{edit_of(taker)}/anchor":
            yield (
                place,
                f"{quoted(word)} is {role}, but {edit_of(taker)} removes it",
                f"take it out here or at {taker}",
            )


def phrases_use_what_is_there(spec: Document) -> Iterator[Finding]:
    """A phrase borrows the effect of a shift, guide or balance edit of the same spec."""
    kinds = {edit["id"]: edit["edit"] for _, edit in edits(spec)}
    usable = [id for id, kind in kinds.items() if kind in ("shift", "guide", "balance")]
    for pointer, edit in edits(spec, "respond"):
        seen: dict[str, int] = {}
        for index, phrase in enumerate(edit["phrases"]):
            if seen.setdefault(plain(phrase["text"]), index) != index:
                yield (
                    f"{pointer}/phrases/{index}/text",
                    f"phrase {quoted(phrase['text'])} is here twice",
                    "name it once",
                )
            use = phrase.get("use")
            if use is None or use in usable:
                continue
            what = (
                f"{quoted(use)} is an edit of kind {quoted(kinds[use])}, whose effect no phrase can have"
                if use in kinds
                else f"no edit has the id {quoted(use)}"
            )
            remedy = did_you_mean(use, usable, "edits that a phrase can use")
            yield (
                f"{pointer}/phrases/{index}/use",
                what,
                remedy or "add the shift, guide or balance edit it stands for",
            )


def _wanted(spec: Document) -> Iterator[tuple[str, str, str]]:
    """Every concept that must still be there afterwards: pointer, word, and in what role it is wanted."""
    preserved = set()
    for index, word in enumerate(spec["preserve"]["concepts"]):
        preserved.add(plain(word))
        yield f"/preserve/concepts/{index}", word, "preserved"
    for pointer, edit in edits(spec):
        for index, word in enumerate(edit.get("preserve", [])):
            yield f"{pointer}/preserve/{index}", word, "preserved by this edit"
        if edit.get("anchor"):
            yield f"{pointer}/anchor", edit["anchor"], "the anchor of this edit"
        if "from" in edit:
            yield f"{pointer}/from", edit["from"], "what this edit erases something from"
        for index, entry in enumerate(edit.get("toward", [])):
            yield f"{pointer}/toward/{index}", concept_of(entry), "guided to"
        for index, group in enumerate(edit.get("groups", [])):
            words = (
                [(f"/{index}", group)]
                if isinstance(group, str)
                else [(f"/{index}/{j}", w) for j, w in enumerate(group)]
            )
            yield from ((f"{pointer}/groups{place}", word, "a group to balance") for place, word in words)
    for index, gate in enumerate(spec["gates"]):
        for number, word in enumerate(gate.get("concepts", [])):
            if plain(word) not in preserved:  # a gate's default is what the spec preserves, judged above
                yield (
                    f"/gates/{index}/concepts/{number}",
                    word,
                    f"to stay as it was by gate {quoted(gate['gate'])}",
                )
