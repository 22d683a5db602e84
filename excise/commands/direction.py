"""`excise direction`: directions as small files of their own, to save from one spec and use in others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from compiler.passes import PassContext


@click.group()
def direction() -> None:
    """Self-discovered directions: save those of a spec, look into a file."""


@direction.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder for it."
)
@click.option("--edit", "wanted", help="Only the shift edit with this id.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the stage cache.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def save(
    spec: Path, folder: Path, wanted: str | None, force: bool, device: str, cache: Path | None, as_json: bool
) -> None:
    """Learn or import the directions of SPEC's shift edits, and write each to a file of its own.

    A file is named after its edit; where an edit has several directions, they are numbered from 1. What an
    earlier build or run has learned comes from the cache.
    """
    from compiler.directions import save_direction
    from compiler.passes.shift import found_direction
    from compiler.seeds import reproducible
    from editspec import InputError, Shift, load_spec
    from excise.embedded import register

    register()
    loaded = load_spec(spec)
    edits = [edit for edit in loaded.edits if isinstance(edit, Shift) and wanted in (None, edit.id)]
    if not edits:
        what = "has no shift edit" if wanted is None else f"has no shift edit '{wanted}'"
        raise InputError(str(spec), what, "its edits are " + ", ".join(edit.id for edit in loaded.edits))
    asked = [
        (folder / f"{edit.id if len(edit.directions) == 1 else f'{edit.id}-{number}'}.safetensors", edit, one)
        for edit in edits
        for number, one in enumerate(edit.directions, start=1)
    ]
    for path, _, _ in asked:
        if path.exists() and not force:
            raise InputError(str(path), "exists", "choose another folder, or --force")
    context = _context(loaded, device, cache)
    with reproducible():
        found = [(path, edit, found_direction(edit, one, context)) for path, edit, one in asked]
    folder.mkdir(parents=True, exist_ok=True)
    for path, _, value in found:
        save_direction(value, path)
    written: list[dict[str, Any]] = [
        {"file": str(path), "edit": edit.id, "facts": dict(value.facts)} for path, edit, value in found
    ]
    if as_json:
        click.echo(json.dumps({"ok": True, "directions": written}, ensure_ascii=False))
        return
    for one in written:
        click.echo(f"{one['file']}: {one['facts'].get('evals', 0):,} evals")


@direction.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(file: Path, as_json: bool) -> None:
    """What the direction in FILE is and where it came from; loads no tensor."""
    from compiler.directions import direction_header

    entries, facts = direction_header(file)
    numbers = sum(entry.parameters for entry in entries.values())
    if as_json:
        click.echo(json.dumps({"ok": True, "vectors": len(entries), "numbers": numbers, "facts": facts}))
        return
    click.echo(f"{len(entries)} vectors, {numbers:,} numbers")
    for key, value in sorted(facts.items()):
        click.echo(f"{key}: {json.dumps(value, ensure_ascii=False)}")


def _context(loaded: Any, device: str, cache: Path | None) -> PassContext:
    """What a pass gets, with nothing upstream; refuses what does not suit the base."""
    from compiler.base import open_base
    from compiler.cache import StageCache
    from compiler.device import choose
    from compiler.passes import PassContext
    from compiler.plan import make_plan
    from compiler.progress import for_terminal

    checkpoint, stages, chosen = open_base(loaded.base, loaded.folder), StageCache(cache), choose(device)
    make_plan(loaded, checkpoint, stages, chosen)  # its refusals
    return PassContext(loaded, checkpoint, {}, loaded.seed, chosen.open(), stages, for_terminal())
