"""The model card: what was edited, what was measured, what that does not show, and what it was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compiler.artifact import CARD, DELTAS, EDITS, GATES, GRID, LOCK, SPEC, Artifact

LIMITS = (
    (
        "An edit changes what the model does with a concept; it is no proof that the model has forgotten it. "
        "Whoever holds the weights can bring a concept back by fine-tuning on a few images, by a learned "
        "embedding (textual inversion), or by subtracting the published change."
    ),
    (
        "The gates hold for the prompts, seeds, sampler, guidance scale and evaluators named in "
        f"`{GATES}`, at the confidence stated there, and for nothing else."
    ),
    "An evaluator can be wrong in both directions; a rate below its own error rate says nothing.",
    "Concepts that are near an edited one may have changed without a gate noticing it.",
)


def write_card(artifact: Artifact) -> None:
    """Write README.md, a Hugging Face model card, from what the artifact's provenance/ says."""
    spec, lock = artifact.read(SPEC), artifact.read(LOCK)
    edits, gates = artifact.read(EDITS), artifact.read(GATES)
    title = _text(spec["name"])
    parts = [
        f"---\n{_metadata(spec, lock)}\n---",
        f"# {title}",
        *_rejection(gates),
        _opening(spec, lock),
        "## What was edited",
        _edits_table(spec, edits),
        *_tensors(edits),
        "## What was measured",
        *_gates_part(gates),
        *(["![The same seeds before and after](" + GRID + ")"] if artifact.path(GRID).is_file() else []),
        "## Limits",
        "\n".join(f"- {limit}" for limit in LIMITS),
        "## Made from",
        _origin(lock),
        "## The edit spec",
        _fenced(json.dumps(spec, indent=2, ensure_ascii=False)),
        "## Licence",
        _licence(spec),
    ]
    path = artifact.path(CARD)
    path.write_text("\n\n".join(parts) + "\n", "utf-8")
    path.chmod(0o644)


def _metadata(spec: Mapping[str, Any], lock: Mapping[str, Any]) -> str:
    """The YAML head that the Hub reads."""
    from huggingface_hub import ModelCardData

    publish, base = spec.get("publish", {}), spec["base"]
    facts: dict[str, Any] = {key: publish.get(key) for key in ("license", "license_name", "license_link")}
    if "repo" in base:
        # The Hub's word for any change of a model's weights.
        facts |= {"base_model": base["repo"], "base_model_relation": "finetune"}
    tags = [
        "stable-diffusion-xl" if lock["base"]["family"] == "sdxl" else "stable-diffusion",
        "text-to-image",
    ]
    tags += ["diffusers", "safetensors", "excise", *publish.get("tags", [])]
    facts |= {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": list(dict.fromkeys(tags))}
    present = {key: value for key, value in facts.items() if value is not None}
    return ModelCardData(**present).to_yaml(line_break="\n")


def _opening(spec: Mapping[str, Any], lock: Mapping[str, Any]) -> str:
    count = len(spec["edits"])
    return (
        f"{_base_name(lock)} with {count} edit{'s' if count != 1 else ''} folded into the U-Net's own "
        f"weights by Excise {lock['libraries']['excise']}. It loads like any checkpoint; there is no adapter "
        "to leave out.\n\n"
        "```python\n"
        "from diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("this-folder-or-repository")\n'
        "```"
    )


def _edits_table(spec: Mapping[str, Any], edits: Mapping[str, Any]) -> str:
    runs = {name: run for run in edits["passes"] for name in run["edits"]}
    rows = []
    for edit in spec["edits"]:
        run = runs[edit["id"]]
        relative = [tensor["relative"] for tensor in run["tensors"] if tensor["relative"]]
        largest = f"{max(relative):.2g}" if relative else "0"
        together = f", with {len(run['edits']) - 1} more" if len(run["edits"]) > 1 else ""
        rows.append(
            [_code(edit["id"]), _subject(edit), f"{run['pass']}{together}", len(run["tensors"]), largest]
        )
    return _table(["edit", "what", "method", "tensors changed", "largest relative change"], rows)


def _subject(edit: Mapping[str, Any]) -> str:
    """What an edit is about, in a few words of the spec itself."""
    shown = [_text(str(edit["concept"]))] if edit.get("concept") else []
    if edit.get("aliases"):
        shown.append(f"(also {', '.join(_text(alias) for alias in edit['aliases'])})")
    if edit.get("anchor"):
        shown.append(f"to {_text(edit['anchor'])}")
    return " ".join([str(edit["edit"]), *shown])


def _tensors(edits: Mapping[str, Any]) -> Iterator[str]:
    count = edits["tensors"]
    yield (
        f"Of {count['total']:,} tensors {count['changed']:,} changed; the other {count['copied']:,} are "
        f"the base's, byte for byte. The exact change is in `{DELTAS}`, statistics of each tensor in "
        f"`{EDITS}`."
    )


def _rejection(gates: Mapping[str, Any]) -> Iterator[str]:
    failed = [result["id"] for result in gates["gates"] if not result["passed"]]
    if failed:
        named = ", ".join(_code(name) for name in failed)
        yield f"> **Rejected.** These gates failed: {named}. This is kept for study; do not publish it."


def _gates_part(gates: Mapping[str, Any]) -> Iterator[str]:
    if not gates["gates"]:
        yield "Nothing: the spec has no gates. That its edits hold is a claim without evidence."
        return
    rows = [
        [
            _code(result["id"]),
            "passed" if result["passed"] else "**failed**",
            _number(result["observed"]),
            _number(result["bound"]),
            _number(result["limit"]),
            _number(result["control"].get("rate")),
            result["n"],
        ]
        for result in gates["gates"]
    ]
    yield _table(["gate", "result", "observed", "bound", "limit", "base", "draws"], rows)
    yield "\n".join(f"- {_code(result['id'])}: {_text(result['reason'])}" for result in gates["gates"])
    yield "A gate passes when the bound of its interval, not the observed value, is within the limit."


def _origin(lock: Mapping[str, Any]) -> str:
    base, libraries = lock["base"], lock["libraries"]
    pinned = f"revision `{base['revision']}`, " if "revision" in base else ""
    rows = [
        ["base", f"{_base_name(lock)}, {pinned}sha256 of its files `{base['digest']}`"],
        ["spec", f"sha256 `{lock['spec']}`, in full below and in `{SPEC}`"],
        [
            "made on",
            f"{_text(lock['device']['class'])}, " + ", ".join(f"{k} {v}" for k, v in libraries.items()),
        ],
    ]
    rebuild = (
        f"Every input is pinned in `{LOCK}`. `excise compile {SPEC} -o NEW`, with the base where the spec "
        "says, gives the same weights again on the same libraries and class of machine. This card and the "
        "manifest are statements of the maker and not signed; as build provenance they are SLSA Build L1 at "
        "most."
    )
    return _table(["", ""], rows) + "\n\n" + rebuild


def _licence(spec: Mapping[str, Any]) -> str:
    licence = spec.get("publish", {}).get("license")
    stated = f"Published under {_code(licence)}. " if licence else ""
    return (
        stated
        + "This is a derivative of its base: the base's licence and use restrictions go on applying to it."
    )


def _base_name(lock: Mapping[str, Any]) -> str:
    base = lock["base"]
    if "repo" in base:
        return f"[{_text(base['repo'])}](https://huggingface.co/{base['repo']})"
    return f"The local checkpoint {_code(base['path'])}"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _text(words: str) -> str:
    """Words from a spec, as words: nothing in them acts as Markdown or HTML, or ends a table's cell."""
    flat = " ".join(words.split())
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", flat)


def _code(words: str) -> str:
    """Words from a spec as inline code, safe in a table."""
    flat = " ".join(words.split()).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall(r"`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}"


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}json\n{text}\n{fence}"
