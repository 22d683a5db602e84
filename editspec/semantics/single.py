"""Checks of each edit in itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

from editspec.defaults import plain, words_of
from editspec.errors import quoted
from editspec.semantics.walk import Document, Finding, concept_of, directions, edits, names, own_words


def anchors_do_not_name_the_concept(spec: Document) -> Iterator[Finding]:
    """An anchor that names the concept would teach it; erased `from` itself, a concept is just erased."""
    for pointer, edit in edits(spec, "erase", "ablate"):
        anchor = edit.get("anchor", "")
        word = next((w for _, w in own_words(pointer, edit) if anchor and names(anchor, w)), None)
        if word is not None:
            empty = ', or "" for the empty prompt' if edit["edit"] == "erase" else ""
            yield (
                f"{pointer}/anchor",
                f"the anchor {quoted(anchor)} contains {quoted(word)}, which this edit removes",
                f"an anchor is what should be there instead, usually something wider{empty}",
            )
        if "from" in edit and plain(edit["from"]) in map(plain, words_of(edit)):
            yield (
                f"{pointer}/from",
                f"{quoted(edit['from'])} cannot be erased from itself",
                "leave 'from' out",
            )


def directions_lead_somewhere(spec: Document) -> Iterator[Finding]:
    """A direction needs two different ends."""
    for pointer, direction in directions(spec):
        if "file" in direction:
            continue
        base, negative = direction.get("base_prompt"), direction.get("negative_prompt")
        if base is None and negative is None:
            yield (
                pointer,
                "this direction leads nowhere: it has only a prompt",
                "add 'base_prompt' (where it starts) or 'negative_prompt' (what it leads away from)",
            )
        elif negative is None and plain(base or "") == plain(direction["prompt"]):
            yield (
                f"{pointer}/base_prompt",
                "this direction ends where it starts",
                "let the two prompts differ",
            )
        elif negative is not None and names(direction["prompt"], negative):
            yield (
                f"{pointer}/negative_prompt",
                f"the prompt {quoted(direction['prompt'])} asks for what the direction leads away from",
                f"take {quoted(negative)} out of the prompt",
            )
    for pointer, edit in edits(spec, "shift"):
        if edit["strength"] == 0:
            yield (
                f"{pointer}/strength",
                "strength 0 changes nothing",
                "give another strength, or drop the edit",
            )


def guidance_does_not_pull_both_ways(spec: Document) -> Iterator[Finding]:
    """Concepts on one side only, and a guidance that acts in at least one sampling step."""
    for pointer, edit in edits(spec, "guide"):
        away = set(map(plain, words_of(edit)))
        for index, entry in enumerate(edit.get("toward", [])):
            if plain(concept_of(entry)) in away:
                yield (
                    f"{pointer}/toward/{index}",
                    f"{quoted(concept_of(entry))} is guided to and away from at once",
                    "choose one",
                )
        steps, begins = edit["sampling_steps"], edit.get("warmup", 0)
        if begins >= steps:
            yield (
                f"{pointer}/warmup",
                f"the guidance never begins: warm-up {begins} of {steps} sampling steps",
            )
        elif edit.get("cooldown", math.inf) <= begins:
            yield (
                f"{pointer}/cooldown",
                f"the guidance ends at step {edit['cooldown']}, before it begins at {begins}",
            )


def balances_add_up(spec: Document) -> Iterator[Finding]:
    """At least two different groups, shares that sum to one, prompts and professions that fit together."""
    for pointer, edit in edits(spec, "balance"):
        groups = edit["groups"]
        nested = [isinstance(group, list) for group in groups]
        if any(nested) != all(nested):
            yield f"{pointer}/groups", "groups are words, or lists of words for several attributes, not both"
        else:
            yield from _groups(pointer, groups if nested[0] else [groups], edit.get("shares"))
        templated = ["{}" in prompt for prompt in edit["prompts"]]
        if any(templated) and not edit["professions"]:
            yield (
                f"{pointer}/prompts/{templated.index(True)}",
                "nothing fills the {} of this prompt",
                "add 'professions': [...]",
            )
        if "{profession}" in edit["group_template"] and not all(templated):
            yield (
                f"{pointer}/prompts/{templated.index(False)}",
                "this prompt has no {} whose profession 'group_template' could put beside a group",
                "give it a {}, or write {prompt} in 'group_template'",
            )
        if edit["professions"] and not any(templated):
            yield (
                f"{pointer}/professions",
                "no prompt has a {} for the professions",
                "write for example 'a photo of a {}'",
            )


def _groups(pointer: str, attributes: list[list[str]], shares: list[float] | None) -> Iterator[Finding]:
    for groups in attributes:
        if len(groups) < 2:
            yield f"{pointer}/groups", "one group cannot be balanced", "name at least two"
        if len(set(map(plain, groups))) < len(groups):
            yield f"{pointer}/groups", "a group is here twice", "name each once"
    if shares is None:
        return
    if len(attributes) > 1:
        yield f"{pointer}/shares", "shares are for a single attribute; several are balanced to equal shares"
    elif len(shares) != len(attributes[0]):
        yield (
            f"{pointer}/shares",
            f"{len(shares)} shares for {len(attributes[0])} groups",
            "one share for each group",
        )
    elif not math.isclose(sum(shares), 1, abs_tol=1e-6):
        yield f"{pointer}/shares", f"the shares add up to {sum(shares):g}, not 1"
