"""`excise rebase`: a build's edits on another base, such as a new revision of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

_HUB = re.compile(r"([\w.\-]+/[\w.\-]+)@([0-9a-f]{40})")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", required=True, help='A folder, ORG/NAME@COMMIT of the Hub, or "miniature".')
@click.option("--variant", help='The variant of its files, such as "fp16".')
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to create.")
@click.option(
    "--carry", is_flag=True, help="Bring the recorded change of distilled edits along; do not train again."
)
@click.option("--force", is_flag=True, help="Replace an earlier artifact at the output path.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the stage cache.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def rebase(
    folder: Path,
    base: str,
    variant: str | None,
    output: Path,
    carry: bool,
    force: bool,
    device: str,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Compile the recorded spec of the build in DIR on another base, to the folder OUTPUT.

    Everything is solved on the new base, taking from the cache what fits. With --carry, what was distilled is
    added as it was recorded and only closed-form edits are solved: quick, and good as long as the new base is
    near the old one. Either way the gates measure the result; a failed one exits with 3.
    """
    from compiler.artifact import LOCK, Artifact
    from compiler.base import open_base
    from compiler.revision import moved
    from editspec import InputError
    from excise import embedded
    from excise.commands.compile import report
    from excise.revising import compile_revision

    embedded.register()
    artifact = Artifact.open(folder)
    revision = moved(artifact, _place(base, variant), carry=carry)
    before, now = artifact.read(LOCK)["base"]["digest"], open_base(revision.spec.base, Path.cwd()).digest
    if now == before:
        raise InputError(base, "is the base that this build was made from", "name another one")
    derived = {"relation": "rebase", "base": before}
    options = {"force": force, "device": device, "cache": cache}
    report(compile_revision(artifact, revision, output, derived, **options), as_json)


def _place(base: str, variant: str | None) -> dict[str, Any]:
    """The base as a spec has it."""
    found = _HUB.fullmatch(base)
    if found and not Path(base).exists():
        place = {"repo": found[1], "revision": found[2]}
    else:
        place = {"path": base if base == "miniature" else str(Path(base).expanduser().absolute())}
    return place if variant is None else {**place, "variant": variant}
