"""`excise compile`: an edit spec in, a proven checkpoint out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from compiler.artifact import Artifact
    from compiler.passes import EditPass
    from compiler.pipeline import Finish
    from editspec import EditSpec


@click.command(name="compile")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to create.")
@click.option("--force", is_flag=True, help="Replace an earlier artifact at the output path.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the stage cache.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def compile_(spec: Path, output: Path, force: bool, device: str, cache: Path | None, as_json: bool) -> None:
    """Compile SPEC into the folder OUTPUT: plain diffusers files, model card and provenance.

    Run it again after an interruption: finished stages are taken from the cache. A failed gate exits with 3
    and leaves the artifact in `rejected/` beside OUTPUT.
    """
    from editspec import load_spec
    from excise.embedded import register

    register()
    report(build(load_spec(spec), output, force=force, device=device, cache=cache), as_json)


def report(artifact: Artifact, as_json: bool) -> None:
    """Say what was built: the path (or JSON) on stdout, tables for people on stderr."""
    from excise import summary

    if as_json:
        click.echo(json.dumps(summary.as_dict(artifact), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    summary.show(artifact, Console(stderr=True))
    click.echo(str(artifact.folder))


def build(
    spec: EditSpec,
    output: Path,
    *,
    force: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    passes: Sequence[EditPass] | None = None,
    finish: Sequence[Finish] = (),
) -> Artifact:
    """Compile with all that a published artifact has: model card, report and manifest, after `finish`."""
    from compiler.cache import StageCache
    from compiler.device import choose
    from compiler.pipeline import compile_spec
    from compiler.progress import for_terminal
    from exporters.card import write_card
    from exporters.manifest import write_manifest
    from exporters.report import write_report

    return compile_spec(
        spec,
        output,
        cache=StageCache(cache),
        device=choose(device),
        progress=for_terminal(),
        force=force,
        passes=passes,
        finish=(*finish, write_card, write_report, write_manifest),
    )
