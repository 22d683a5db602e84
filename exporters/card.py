"""The model card: what was edited, what was measured, what that does not show, and what it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from compiler.artifact import (
    ATTESTATIONS,
    CARD,
    EDITS,
    GATES,
    GRID,
    LOCK,
    MANIFEST,
    SIGNATURE,
    SPEC,
    Artifact,
)
from compiler.licence import Licence
from editspec.errors import listed
from exporters.card_edits import beside_originals, what_was_edited
from exporters.card_head import head
from exporters.markdown import code, fenced, table, text

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

UNMEASURED = (
    "How many steps of fine-tuning bring a concept back was not measured for this build: take the cost of "
    "relearning to be small."
)

VERIFY = f"""\
```sh
pip install 'excise[sign]'
excise verify DIR --key PUBLISHER.pub
excise verify DIR --rebuild
model_signing verify key DIR --signature DIR/{SIGNATURE} --public_key PUBLISHER.pub
```

The first command checks every byte, the records against each other, the weight files and the signature; the
second also compiles the recorded spec again and compares all digests; the third checks the signature alone,
with the tool of the OpenSSF. Take the public key from the publisher by another way than this repository: one
that travels with a model proves nothing. Where there is no `{SIGNATURE}`, nothing shows who made this.

`{MANIFEST}` is an in-toto statement with SLSA provenance: every file by sha256, and all it was made from.
Its maker ran the build and vouches for it, which is SLSA Build L1 at most. Where a key signed the artifact,
`{ATTESTATIONS}` holds this statement and the gates' results as attestations by
that key, one DSSE envelope a line, for tools that check policies."""


def write_card(artifact: Artifact) -> None:
    """Write README.md, a Hugging Face model card, from what the artifact's provenance/ says."""
    spec, lock = artifact.read(SPEC), artifact.read(LOCK)
    edits, gates = artifact.read(EDITS), artifact.read(GATES)
    title = text(spec["name"])
    parts = [
        f"---\n{head(spec, lock, gates)}\n---",
        f"# {title}",
        *_rejection(gates),
        _opening(spec, lock),
        "## What was edited",
        *what_was_edited(spec, edits),
        "## What was measured",
        *_gates_part(gates),
        *beside_originals(edits),
        *(["![The same seeds before and after](" + GRID + ")"] if artifact.path(GRID).is_file() else []),
        "## Limits",
        "\n".join(f"- {limit}" for limit in (LIMITS[0], *_relearning(gates), *LIMITS[1:])),
        "## Made from",
        _origin(lock),
        "## How to verify",
        VERIFY,
        "## The edit spec",
        fenced(json.dumps(spec, indent=2, ensure_ascii=False)),
        "## Licence",
        "\n\n".join(_licence(lock)),
    ]
    path = artifact.path(CARD)
    path.write_text("\n\n".join(parts) + "\n", "utf-8")
    path.chmod(0o644)


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


def _rejection(gates: Mapping[str, Any]) -> Iterator[str]:
    failed = [result["id"] for result in gates["gates"] if not result["passed"]]
    if failed:
        named = ", ".join(code(name) for name in failed)
        yield f"> **Rejected.** These gates failed: {named}. This is kept for study; do not publish it."


def _gates_part(gates: Mapping[str, Any]) -> Iterator[str]:
    if not gates["gates"]:
        yield "Nothing: the spec has no gates. That its edits hold is a claim without evidence."
        return
    rows = [
        [
            code(result["id"]),
            "passed" if result["passed"] else "**failed**",
            *(_number(result[key], result.get("unit")) for key in ("observed", "bound", "limit")),
            _number(result["control"].get("rate")),
            result["n"],
        ]
        for result in gates["gates"]
    ]
    yield table(["gate", "result", "observed", "bound", "limit", "base", "draws"], rows)
    yield "\n".join(f"- {code(result['id'])}: {text(result['reason'])}" for result in gates["gates"])
    yield "A gate passes when the bound of its interval, not the observed value, is within the limit."


def _relearning(gates: Mapping[str, Any]) -> Iterator[str]:
    """What it took to bring each concept back, as far as a gate `relearned` measured it."""
    measured = [one for one in gates["gates"] if one["gate"] == "relearned" and one["details"].get("curve")]
    if not measured:
        yield UNMEASURED
    for result in measured:
        found, base = result["details"], _percent(result["control"]["rate"])
        (concept,), back = map(text, result["plan"]["concepts"]), found["steps_to_return"]
        rates = {point["steps"]: point["rate"] for point in found["curve"]}
        slower = [other["learning_rate"] for other in found["slower"]]
        tried = listed(f"{rate:g}" for rate in sorted([found["learning_rate"], *slower]))
        how = f"on {found['images']} pictures"
        if back is None:
            told = (
                f"{found['max_steps']} steps of fine-tuning {how} did not bring {concept} back: seen in "
                f"{_percent(max(rates.values()))} of pictures at most (base {base}). Learning rates tried: "
                f"{tried}. More steps, other settings or other means may bring it back."
            )
        elif back == 0:
            told = f"Without fine-tuning {concept} is seen in {_percent(rates[0])} of pictures (base {base})."
        else:
            told = (
                f"Fine-tuning {how} brought {concept} back after {back} steps: seen in "
                f"{_percent(rates[back])} of pictures then (before {_percent(rates[0])}, base {base}). "
                f"It is the quickest of the learning rates tried ({tried}); other means may be quicker."
            )
        yield f"{told} This is the gate {code(result['id'])}; the whole curve is in `{GATES}`."


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def _origin(lock: Mapping[str, Any]) -> str:
    base, libraries = lock["base"], lock["libraries"]
    pinned = f"revision `{base['revision']}`, " if "revision" in base else ""
    rows = [
        ["base", f"{_base_name(lock)}, {pinned}sha256 of its files `{base['digest']}`"],
        ["spec", f"sha256 `{lock['spec']}`, in full below and in `{SPEC}`"],
        [
            "made on",
            f"{text(lock['device']['class'])}, " + ", ".join(f"{k} {v}" for k, v in libraries.items()),
        ],
    ]
    rebuild = (
        f"Every input is pinned in `{LOCK}`. The same spec, base, libraries and class of machine give the "
        "same weights again, byte for byte."
    )
    return table(["", ""], rows) + "\n\n" + rebuild


def _licence(lock: Mapping[str, Any]) -> Iterator[str]:
    record, base = lock["license"], [Licence(**one) for one in lock["base"]["license"]]
    published = record["published"]
    if published:
        link = f" ({text(published['link'])})" if "link" in published else ""
        yield f"Published under {code(Licence(**published).title)}{link}."
    for licence in base:
        forbidden = f" It forbids {listed(licence.forbids)}." if licence.forbids else ""
        yield (
            f"The base is under {code(licence.title)}: as this is a derivative, the base's licence and use "
            f"restrictions go on applying to it.{forbidden}"
        )
    if not base:
        yield "The base states no licence: ask its owner before you share a derivative of it."
    if record["accepted"]:
        named = listed(code(name) for name in record["accepted"])
        yield f"The publisher states in the spec to have the right to go by {named} as published here."


def _base_name(lock: Mapping[str, Any]) -> str:
    base = lock["base"]
    if "repo" in base:
        return f"[{text(base['repo'])}](https://huggingface.co/{base['repo']})"
    return f"The local checkpoint {code(base['path'])}"


def _number(value: Any, unit: str | None = None) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "-"
    return f"{value:,} steps" if unit == "steps" else f"{value:.3g}"
