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
    REPORT,
    SIGNATURE,
    SPEC,
    Artifact,
)
from exporters.card_edits import beside_originals, what_was_edited
from exporters.card_head import head
from exporters.limits import limits
from exporters.markdown import code, fenced, table, text
from exporters.origin import REBUILD, base_name, licence, origin

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
        "\n".join(f"- {limit}" for limit in limits(gates)),
        "## Made from",
        table(["", ""], origin(lock)),
        REBUILD,
        "## How to verify",
        VERIFY,
        "## The edit spec",
        fenced(json.dumps(spec, indent=2, ensure_ascii=False)),
        "## Licence",
        "\n\n".join(licence(lock)),
    ]
    path = artifact.path(CARD)
    path.write_text("\n\n".join(parts) + "\n", "utf-8")
    path.chmod(0o644)


def _opening(spec: Mapping[str, Any], lock: Mapping[str, Any]) -> str:
    count = len(spec["edits"])
    return (
        f"{base_name(lock)} with {count} edit{'s' if count != 1 else ''} folded into the U-Net's own "
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
    yield (
        "A gate passes when the bound of its interval, not the observed value, is within the limit. Every "
        f"prompt's counts are in `{REPORT}`, a page for a browser."
    )


def _number(value: Any, unit: str | None = None) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "-"
    return f"{value:,} steps" if unit == "steps" else f"{value:.3g}"
