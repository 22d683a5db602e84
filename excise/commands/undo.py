"""`excise undo`: a build without one of its edits; every other edit keeps its change, bit by bit."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("edit_id")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to create.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="The base's folder, where its path has changed."
)
@click.option("--force", is_flag=True, help="Replace an earlier artifact at the output path.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the stage cache.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def undo(
    folder: Path,
    edit_id: str,
    output: Path,
    base: Path | None,
    force: bool,
    device: str,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Write the build in DIR without its edit EDIT_ID to the folder OUTPUT; DIR stays as it is.

    The edit's recorded change is left out and the others are linked to the base again, so nothing of it
    remains, not even a rounding error. Edits that were solved together with it are solved again, without it.
    The gates that still judge something are measured anew; a failed one exits with 3.
    """
    from compiler.artifact import Artifact
    from compiler.revision import without
    from excise import embedded
    from excise.commands.compile import report
    from excise.recorded import on_folder, recorded_base
    from excise.revising import compile_revision

    embedded.register()
    artifact = Artifact.open(folder)
    revision = without(artifact, edit_id)
    revision = revision.with_spec(on_folder(revision.spec, base))
    recorded_base(artifact, revision.spec)
    derived = {"relation": "undo", "edit": edit_id}
    options = {"force": force, "device": device, "cache": cache}
    report(compile_revision(artifact, revision, output, derived, **options), as_json)
