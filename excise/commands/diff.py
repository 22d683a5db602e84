"""`excise diff`: what sets two checkpoints apart, in weights, spec and what the gates found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from compiler.comparison import Compared

SHOWN = 10  # groups of layers, those that moved farthest


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--variant", help='Files of this variant, such as "fp16", in both.')
@click.option("--require-equal", is_flag=True, help="Exit with 3 unless all weights are equal.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def diff(first: Path, second: Path, variant: str | None, require_equal: bool, as_json: bool) -> None:
    """What the checkpoint in SECOND has that FIRST has not: an artifact and its base, or two releases.

    Weights are compared tensor by tensor, whatever their number format. Of two artifacts the records are
    compared too: what the specs declare, what the builds were pinned to, what the gates found. Both folders
    stay as they are.
    """
    from rich.console import Console

    from compiler.artifact import Artifact, is_artifact
    from compiler.checkpoint import Checkpoint
    from compiler.comparison import compare, tensors_of
    from compiler.progress import for_terminal
    from editspec import GateFailed, InputError
    from exporters.comparison import record_changes

    opened = [Checkpoint.open(folder, variant) for folder in (first, second)]
    with for_terminal().task("compare", tensors_of(*opened)) as task:
        found = compare(opened[0], opened[1], task.advance)
    equal = all(one.equal for one in found)
    records: dict[str, Any] = {}
    if is_artifact(first) and is_artifact(second):
        try:
            records = record_changes(Artifact.open(first), Artifact.open(second))
        except (KeyError, TypeError, AttributeError) as error:
            what = f"records lack what a build records ({type(error).__name__}: {str(error)[:80]})"
            raise InputError(f"{first}, {second}", what, "see what `excise verify` says of both") from error
    if as_json:
        weights = {one.component: one.as_dict() for one in found}
        click.echo(json.dumps({"equal": equal, "weights": weights, **records}, indent=2, ensure_ascii=False))
    else:
        _show(found, records, Console())
    if require_equal and not equal:
        if as_json:  # the result is the one object on stdout
            click.get_current_context().exit(3)
        raise GateFailed("the weights are not equal")


def _show(found: Sequence[Compared], records: dict[str, Any], console: Console) -> None:
    """A table of components, the layers that moved farthest, then what the records say differently."""
    from rich.table import Table

    table = Table("component", box=None, header_style="bold", pad_edge=False)
    for head in ("tensors", "differ", "relative change"):
        table.add_column(head, justify="right")
    for one in found:
        table.add_row(one.component, str(one.tensors), str(len(one.moved)), f"{one.relative:.3g}")
        for name, (count, share) in _farthest(one) if one.component == "unet" else ():
            table.add_row(f"  {name}", "", str(count), f"{share:.3g}")
    console.print(table)
    for one in found:
        for what, names in (
            ("only in the first", one.only_first),
            ("only in the second", one.only_second),
            ("of another shape", one.reshaped),
            ("of another number format", one.retyped),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                console.print(f"{one.component}: {what}: {names[0]}{more}", markup=False, highlight=False)
    for title, listed in records.items():
        console.print()
        console.print(f"{title}: {'' if listed else 'the same'}".rstrip(), markup=False)
        for change in listed:
            line = _gate(change) if title == "gates" else _change(change)
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _farthest(one: Compared) -> list[tuple[str, tuple[int, float]]]:
    return sorted(one.by_group().items(), key=lambda item: -item[1][1])[:SHOWN]


def _change(change: dict[str, Any]) -> str:
    """A place with both values, or the one there is."""
    sides = [json.dumps(change[side], ensure_ascii=False) for side in ("first", "second") if side in change]
    if len(sides) == 2:
        return f"{change['at']}: {sides[0]} -> {sides[1]}"
    return f"{change['at']}: only in the {'first' if 'first' in change else 'second'}: {sides[0]}"


def _gate(change: dict[str, Any]) -> str:
    """A gate's verdict and measurement in both."""
    return f"{change['id']}: " + " -> ".join(
        _verdict(change[side]) if side in change else "none" for side in ("first", "second")
    )


def _verdict(found: dict[str, Any]) -> str:
    from compiler.gates.gate import amount

    unit = found["unit"]
    observed, bound, limit = (amount(found[key], unit) for key in ("observed", "bound", "limit"))
    verdict = "passed" if found["passed"] else "failed"
    return f"{verdict} with {observed} (bound {bound}, limit {limit}, {found['n']:,} draws)"
