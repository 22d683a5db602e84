"""What a model card says of the edits: what each is about, how it was made, and how near it came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.artifact import DELTAS, EDITS
from editspec.errors import listed
from exporters.markdown import code, table, text

HEAD = ("edit", "what", "method", "tensors changed", "largest relative change")
ORIGINALS = {
    "guide/sega": "semantic guidance",
    "guide/sld": "safe latent diffusion",
    "guide/negative-prompt": "the negative prompt",
    "respond/phrases": "what the phrase stands for",
}


def what_was_edited(spec: Mapping[str, Any], edits: Mapping[str, Any]) -> Iterator[str]:
    """A table of the edits, their settings, and how much of the model they changed."""
    yield _edits_table(spec, edits)
    yield "With these settings, defaults filled in:"
    yield "\n".join(f"- {code(edit['id'])}: {settings(edit)}" for edit in spec["edits"])
    count = edits["tensors"]
    yield (
        f"Of {count['total']:,} tensors {count['changed']:,} changed; the other {count['copied']:,} are "
        f"the base's, byte for byte. The exact change is in `{DELTAS}`, statistics of each tensor in "
        f"`{EDITS}`."
    )


def faithfulness(edits: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each pass that has a runtime original, with what it recorded of how near it came, scale by scale."""
    return [
        (run, found)
        for run in edits["passes"]
        for found in run.get("record", {}).get("faithfulness", ())
        if run["pass"] in ORIGINALS
    ]


def beside_originals(edits: Mapping[str, Any]) -> Iterator[str]:
    """How much of what runtime guidance changes the weights that have learned it miss."""
    rows = faithfulness(edits)
    if not rows:
        return
    yield (
        "Guidance that was baked in, beside the original at runtime: of what the original changes in guided "
        "predictions, plain sampling of this model misses, on prompts that it was taught, from other noise "
        f"(root mean square; 0 is the original, 1 the unedited model; by timesteps in `{EDITS}`):"
    )
    yield table(
        ("edit", "original", "guidance scale", "missed", "worst timesteps"),
        [
            (
                listed(code(name) for name in run["edits"]),
                f"{ORIGINALS[run['pass']]}{_of(found)}",
                f"{found['guidance_scale']:g}",
                f"{found['missed']:.2f}",
                f"{max((one['ratio'] for one in found['bins'] if one['change']), default=0.0):.2f}",
            )
            for run, found in rows
        ],
    )


def _of(found: Mapping[str, Any]) -> str:
    return f": {text(found['phrase'])}" if "phrase" in found else ""


def _edits_table(spec: Mapping[str, Any], edits: Mapping[str, Any]) -> str:
    runs = {name: run for run in edits["passes"] for name in run["edits"]}
    rows = []
    for edit in spec["edits"]:
        run = runs[edit["id"]]
        relative = [tensor["relative"] for tensor in run["tensors"] if tensor["relative"]]
        largest = f"{max(relative):.2g}" if relative else "0"
        together = f", with {len(run['edits']) - 1} more" if len(run["edits"]) > 1 else ""
        rows.append(
            [code(edit["id"]), subject(edit), f"{run['pass']}{together}", len(run["tensors"]), largest]
        )
    return table(HEAD, rows)


def subject(edit: Mapping[str, Any]) -> str:
    """What an edit is about, in a few words of the spec itself."""
    kind = str(edit["edit"])
    about = {"shift": _shifted, "guide": _guided, "balance": _balanced, "respond": _phrases}.get(kind, _named)
    return " ".join([kind, *about(edit)])


def _named(edit: Mapping[str, Any]) -> Iterator[str]:
    if edit.get("concept"):
        yield text(str(edit["concept"]))
    if edit.get("aliases"):
        yield f"(also {', '.join(map(text, edit['aliases']))})"
    if edit.get("anchor"):
        yield f"to {text(edit['anchor'])}"


def _shifted(edit: Mapping[str, Any]) -> Iterator[str]:
    directions = edit["direction"] if isinstance(edit["direction"], list) else [edit["direction"]]
    yield listed(" ".join(_direction(one)) for one in directions)


def _direction(one: Mapping[str, Any]) -> Iterator[str]:
    if "file" in one:
        yield f"along {text(one.get('concept') or one['file'])}"
        return
    if "prompt" in one:
        start = one.get("base_prompt", one["prompt"])
        yield text(one["prompt"]) if start == one["prompt"] else f"{text(start)} to {text(one['prompt'])}"
    if "negative_prompt" in one:
        yield f"away from {text(one['negative_prompt'])}"


def _guided(edit: Mapping[str, Any]) -> Iterator[str]:
    for side, words in (("away_from", "away from"), ("toward", "toward")):
        concepts = [one if isinstance(one, str) else one["concept"] for one in edit.get(side, ())]
        if concepts:
            yield f"{words} {listed(map(text, concepts))}"


def _balanced(edit: Mapping[str, Any]) -> Iterator[str]:
    attributes = edit["groups"] if isinstance(edit["groups"][0], list) else [edit["groups"]]
    yield "; ".join(listed(map(text, groups)) for groups in attributes)


def _phrases(edit: Mapping[str, Any]) -> Iterator[str]:
    yield f"to {listed(text(one['text']) for one in edit['phrases'])}"


def settings(edit: Mapping[str, Any]) -> str:
    """How an edit was made: its settings that are one word or number, in the spec's own names."""
    told = ("id", "edit", "concept", "anchor")
    plain = {name: value for name, value in edit.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{name} {text(str(value))}" for name, value in plain.items() if name not in told)
