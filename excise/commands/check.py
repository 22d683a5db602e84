"""`excise check`: every mistake in a spec, each with its line, column and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.option("--canonical", is_flag=True, help="Print the spec with all defaults, in canonical form.")
def check(spec: Path, as_json: bool, canonical: bool) -> None:
    """Check SPEC without a base model: JSON, structure and meaning. Exits with 2 if anything is wrong."""
    from editspec import canonical as canonical_form
    from editspec import load_spec

    loaded = load_spec(spec)
    if canonical:
        click.echo(canonical_form(loaded.document).decode())
    elif as_json:
        outcome = {
            "ok": True,
            "file": str(spec),
            "name": loaded.name,
            "digest": loaded.digest,
            "edits": [{"id": edit.id, "edit": edit.edit, "method": edit.method} for edit in loaded.edits],
            "gates": [{"id": gate.id, "gate": gate.gate} for gate in loaded.gates],
        }
        click.echo(json.dumps(outcome, indent=2, ensure_ascii=False))
    else:
        counts = [_counted(len(loaded.edits), "edit"), _counted(len(loaded.gates), "gate")]
        click.echo(f"{spec}: ok, {', '.join(counts)}, sha256 {loaded.digest}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
