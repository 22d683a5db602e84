"""`excise plan`: what a spec will do and cost, without loading a tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from compiler.plan import Plan


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the stage cache.")
@click.option("--neighbours", is_flag=True, help="Mine what 'preserve.auto' keeps now; takes seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(spec: Path, device: str, cache: Path | None, neighbours: bool, as_json: bool) -> None:
    """Show the passes that compile SPEC: order, targets, cost on this device, and what the cache holds."""
    from compiler.base import open_base
    from compiler.cache import StageCache
    from compiler.device import choose
    from compiler.plan import make_plan
    from editspec import load_spec
    from excise.embedded import register

    register()
    loaded = load_spec(spec)
    checkpoint = open_base(loaded.base, loaded.folder)
    stages, chosen = StageCache(cache), choose(device)
    made = make_plan(loaded, checkpoint, stages, chosen)
    if neighbours and made.unmined:
        from compiler.mining import mine_all

        mine_all(made.unmined, checkpoint, stages, chosen)
        made = make_plan(loaded, checkpoint, stages, chosen)
    if as_json:
        click.echo(json.dumps(made.outlook(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    print_plan(made, Console())


def print_plan(made: Plan, console: Console) -> None:
    """The plan as tables for people."""
    from rich.markup import escape
    from rich.table import Table

    device = made.device
    place = f"{device.device_class}, {device.cores} cores" if device.kind == "cpu" else device.device_class
    console.print(
        f"[bold]{escape(made.name)}[/bold] on {made.family} base {made.base_digest[:12]}, {escape(place)}"
    )
    passes = Table(box=None, header_style="bold", pad_edge=False)
    passes.add_column("pass", no_wrap=True)
    passes.add_column("edits")
    for head in ("tensors", "parameters", "evals", "time", "memory", "cache"):
        passes.add_column(head, justify="right")
    for planned in made.passes:
        passes.add_row(
            planned.edit_pass.name,
            escape(", ".join(planned.ids)),
            f"{len(planned.targets):,}",
            shortened(planned.parameters),
            f"{planned.evals:,}",
            "-" if planned.cached else duration(planned.seconds),
            f"{shortened(planned.memory_bytes)}B",
            "there" if planned.cached else "no",
        )
    console.print(passes)
    if len(made.passes) > 1:
        console.print("\nin this order, each pass on the result of those before it:")
        for reason in dict.fromkeys(planned.edit_pass.reason for planned in made.passes):
            names = dict.fromkeys(p.edit_pass.name for p in made.passes if p.edit_pass.reason == reason)
            console.print(f"  [bold]{', '.join(names)}[/bold]: {reason}")
    print_neighbours(made, console)
    if made.gates:
        gates = Table("gate", "kind", box=None, header_style="bold", pad_edge=False)
        for head in ("limit", "confidence", "draws", "failures allowed", "evals"):
            gates.add_column(head, justify="right")
        for gate in made.gates:
            allowed = "-" if gate.allowed is None else str(gate.allowed)
            row = (
                f"{gate.limit:.3g}",
                f"{gate.gate.confidence:.3g}",
                f"{len(gate.trials):,}",
                allowed,
                f"{gate.evals:,}",
            )
            gates.add_row(escape(gate.id), gate.gate.gate, *row)
        console.print()
        console.print(gates)
    else:
        console.print("\nno gates: the result will carry no proof")
    console.print(
        f"\n{made.evals:,} evals to do, about {duration(made.seconds)}, "
        f"{shortened(made.memory_bytes)}B of memory"
    )


def print_neighbours(made: Plan, console: Console) -> None:
    """What `preserve.auto` keeps beside each edit, nearest first, with the cosine to what is edited."""
    from rich.markup import escape

    each = {id: words for planned in made.passes for id, words in planned.neighbours.items()}
    if each:
        console.print("\nneighbours that are kept, with the cosine of their text to what is edited:")
    for id, words in each.items():
        if words is None:
            found = "mined when compiled; --neighbours shows them now"
        elif not words:
            found = "none: the words nearest to sensitive content are those that imply it"
        else:
            found = ", ".join(f"{word} {cosine:.2f}" for word, cosine in words)
        console.print(f"  [bold]{escape(id)}[/bold]: {escape(found)}", highlight=False)


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `7 min`, `3.5 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def shortened(count: float) -> str:
    """`950`, `44.0 M`, `3.4 G`: thousands as letters."""
    for letter in ("", " k", " M", " G"):
        if count < 1000 or letter == " G":
            return f"{count:.0f}{letter}" if not letter else f"{count:.1f}{letter}"
        count /= 1000
    raise AssertionError("unreachable")
