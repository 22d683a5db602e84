"""`excise schema`: the JSON Schema of edit specs, for editors."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="On one line; the schema is JSON either way.")
def schema(as_json: bool) -> None:
    """Print the JSON Schema (2020-12) of edit specs.

    Save it beside a spec, begin the spec with "$schema": "./editspec.schema.json", and editors check it.
    """
    from editspec import schema as assembled

    click.echo(json.dumps(assembled(), indent=None if as_json else 2, ensure_ascii=False))
