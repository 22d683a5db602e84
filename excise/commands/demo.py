"""`excise demo`: the bundled spec on the embedded miniature, from text to proof."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("excise-demo"),
    show_default=True,
    help="Folder to create.",
)
@click.option("--force", is_flag=True, help="Replace an earlier artifact at the output path.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the stage cache.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(output: Path, force: bool, device: str, cache: Path | None, as_json: bool) -> None:
    """Compile a spec with edits of several kinds into a checkpoint and measure that they hold.

    Takes some minutes on a small CPU. The spec itself is in provenance/editspec.json of the result.
    """
    from compiler.artifact import Artifact
    from compiler.output import REJECTED
    from editspec import GateFailed, load_spec
    from excise.commands.compile import build, report
    from excise.embedded import demo_spec, register

    register()
    spec = load_spec(demo_spec())
    try:
        artifact = build(spec, output, force=force, device=device, cache=cache)
    except GateFailed:
        if not as_json:
            report(Artifact.open(output.absolute().parent / REJECTED / output.name), as_json)
        raise
    report(artifact, as_json)
