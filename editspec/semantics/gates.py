"""Checks of gates: that they judge what the spec edits, with enough trials, and that something can judge."""

from __future__ import annotations

import math
from collections.abc import Iterator

from editspec.defaults import plain, words_of
from editspec.errors import did_you_mean, quoted
from editspec.semantics.walk import Document, Finding, edits, names


def gates_judge_what_is_edited(spec: Document) -> Iterator[Finding]:
    """A gate on a concept that no edit removes is a slip, or proves something else than it says."""
    words = [word for _, edit in edits(spec) for word in words_of(edit)]
    for index, gate in enumerate(spec["gates"]):
        concept = gate.get("concept")
        if concept is not None and not any(names(word, concept) for word in words):
            remedy = did_you_mean(concept, words, "what the edits remove") or "add an edit that removes it"
            yield (
                f"/gates/{index}/concept",
                f"gate {quoted(gate['gate'])} judges {quoted(concept)}, which no edit removes",
                remedy,
            )
        if gate["gate"] == "preserved" and not gate["concepts"]:
            yield (
                f"/gates/{index}",
                "gate 'preserved' has nothing to judge",
                "give it 'concepts', or the spec a 'preserve' with 'concepts'",
            )
        if gate["gate"] == "neighbours" and not gate.get("concepts") and not words:
            yield (
                f"/gates/{index}",
                "gate 'neighbours' has nothing to judge: no edit removes a concept",
                "give it 'concepts'",
            )


def implicit_prompts_do_not_name_the_concept(spec: Document) -> Iterator[Finding]:
    """An implicit prompt brings a concept up without its name; with the name it is the gate `erased`."""
    for index, gate in enumerate(spec["gates"]):
        if gate["gate"] != "implicit":
            continue
        concept = plain(gate["concept"])
        group = {concept: gate["concept"]}
        for _, edit in edits(spec, "erase", "ablate"):
            own = {plain(word): word for word in words_of(edit)}
            if concept in own:
                group.update(own)
        for number, prompt in enumerate(gate["prompts"]):
            named = next((word for word in group.values() if names(prompt, word)), None)
            if named is not None:
                yield (
                    f"/gates/{index}/prompts/{number}",
                    f"this prompt names {quoted(named)}, so it is not implicit",
                    "move it to a gate 'erased', or say it without the word",
                )


def trials_can_show_the_limit(spec: Document) -> Iterator[Finding]:
    """With n images and no failure the exact upper bound is 1 - (1 - confidence)^(1/n) (Clopper-Pearson)."""
    for index, gate in enumerate(spec["gates"]):
        if "max_rate" not in gate or "trials" not in gate:
            continue
        limit, confidence, trials = gate["max_rate"], gate["confidence"], gate["trials"]
        least = math.ceil(math.log1p(-confidence) / math.log1p(-limit))
        if trials < least:
            yield (
                f"/gates/{index}/trials",
                f"{trials} images cannot show a rate below {limit:g} at {confidence:g} confidence",
                f"even with none flagged it takes {least}; leave 'trials' out to have them planned",
            )


def relearning_goes_as_far_as_its_limit(spec: Document) -> Iterator[Finding]:
    """What is not trained for min_steps cannot show that the concept stays away so long."""
    for index, gate in enumerate(spec["gates"]):
        if gate["gate"] == "relearned" and gate["min_steps"] > gate["max_steps"]:
            yield (
                f"/gates/{index}/min_steps",
                f"{gate['max_steps']} steps cannot show that the concept stays away for {gate['min_steps']}",
                f"give at least {gate['min_steps']} max_steps",
            )


def something_can_judge(spec: Document) -> Iterator[Finding]:
    """Only the miniature brings evaluators of its own; drift compares images and needs none."""
    if spec["evaluators"] or spec["base"].get("path") == "miniature":
        return
    for index, gate in enumerate(spec["gates"]):
        if gate["gate"] != "drift":
            yield (
                f"/gates/{index}",
                f"gate {quoted(gate['gate'])} needs an evaluator, and the spec has none",
                'add "evaluators": [{"id": "...", "model": "folder of a classifier"}]',
            )
            return  # one evaluator answers for all gates
