"""`excise miniature`: the embedded model as an ordinary folder."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def miniature() -> None:
    """The embedded model: a small text-to-image model whose world is known, for trying and testing."""


@miniature.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--twin", is_flag=True, help="Export the twin that never saw a flame.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(folder: Path, twin: bool, as_json: bool) -> None:
    """Write the miniature as a diffusers folder to DIR, which must not exist or be empty."""
    from excise.miniature.assets import export as write

    written = write(folder, twin=twin)
    files = sorted(str(p.relative_to(written)) for p in written.rglob("*") if p.is_file())
    if as_json:
        click.echo(json.dumps({"ok": True, "folder": str(written), "twin": twin, "files": files}))
    else:
        click.echo(f"{written}: {len(files)} files")
