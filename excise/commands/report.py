"""`excise report`: what a build did and measured, from its records, here or as a page."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write an HTML page to this file.")
@click.option("--force", is_flag=True, help="Replace a file at the output path.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def report(folder: Path, output: Path | None, force: bool, as_json: bool) -> None:
    """What the artifact in FOLDER says of itself: gates, neighbours, edits.

    Nothing is measured again: `excise evaluate` does that. Whether these are the records that were written is
    what `excise verify` shows. The page that -o writes is one file, pictures included; an artifact also has
    one in provenance/report.html.
    """
    from jinja2 import TemplateError
    from rich.console import Console

    from compiler.artifact import Artifact
    from editspec import InputError
    from excise import summary
    from exporters.destination import write_file
    from exporters.report import whole_page

    artifact = Artifact.open(folder)
    try:
        facts = summary.as_dict(artifact)
        page = whole_page(artifact) if output is not None else ""
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration, TemplateError) as error:
        what = f"its records lack what a build records ({type(error).__name__}: {str(error)[:80]})"
        raise InputError(str(folder), what, "see what `excise verify` says of it") from error
    if output is not None:
        write_file(output, page.encode("utf-8"), force=force)
    if as_json:
        written = {"page": str(output)} if output is not None else {}
        click.echo(json.dumps({**facts, **written}, indent=2, ensure_ascii=False))
    elif output is not None:
        click.echo(str(output))
    else:
        summary.show(artifact, Console())
