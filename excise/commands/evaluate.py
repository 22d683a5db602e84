"""`excise evaluate`: run the gates of an artifact again, against its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from compiler.artifact import Artifact
    from compiler.gates import GateReport, GateResult


@click.command()
@click.argument("artifact", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--spec", type=click.Path(path_type=Path), help="Take the gates from this spec instead.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="The base's folder, where its path has changed."
)
@click.option("--grid", type=click.Path(path_type=Path), help="Write a before/after grid to this PNG file.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the stage cache.")
@click.option("--fresh", is_flag=True, help="Draw every picture again; take none from the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(
    artifact: Path,
    spec: Path | None,
    base: Path | None,
    grid: Path | None,
    device: str,
    cache: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Measure the artifact DIR and its base with the gates of its spec. Exits with 3 if one fails.

    DIR stays as it is. Relative paths in its recorded spec start at the current folder; those in a spec given
    with --spec at that spec's folder.
    """
    from compiler.artifact import Artifact
    from compiler.cache import StageCache
    from compiler.checkpoint import Checkpoint
    from compiler.device import choose
    from compiler.evaluators import open_evaluators
    from compiler.gates import measure
    from compiler.grid import before_after_grid
    from compiler.progress import for_terminal
    from editspec import GateFailed, InputError
    from excise import embedded
    from excise.recorded import recorded_base, recorded_spec

    embedded.register()
    built = Artifact.open(artifact)
    loaded, start = recorded_spec(built, spec, base)
    if not loaded.gates:
        raise InputError(loaded.name, "the spec has no gates", "give a spec that has some with --spec")
    opened = recorded_base(built, loaded, start)
    torch_device = choose(device).open()
    report = measure(
        loaded,
        opened,
        Checkpoint.open(artifact, opened.variant),
        open_evaluators(loaded, start, torch_device),
        device=torch_device,
        progress=for_terminal(),
        cache=None if fresh else StageCache(cache),
    )
    if grid is not None:
        before_after_grid(report.gallery, grid)
    if as_json:
        repeats = None if spec else repeats_record(built, report)
        click.echo(json.dumps({**report.as_dict(), "repeats_record": repeats}, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        print_report(report.results, Console())
    if report.passed:
        return
    if as_json:  # the report is the one object on stdout
        click.get_current_context().exit(3)
    raise GateFailed(", ".join(result.id for result in report.results if not result.passed))


def print_report(results: tuple[GateResult, ...], console: Console) -> None:
    """Each gate's verdict with measurement, bound and limit, then its reason in words."""
    from rich.markup import escape
    from rich.table import Table

    from compiler.gates.gate import amount

    table = Table("gate", "kind", "verdict", box=None, header_style="bold", pad_edge=False)
    for head in ("measured", "bound", "limit", "base", "draws"):
        table.add_column(head, justify="right")
    for result in results:
        verdict = "[green]passed[/green]" if result.passed else "[bold red]failed[/bold red]"
        numbers = [amount(n, result.plan.unit) for n in (result.observed, result.bound, result.limit)]
        shown = (*numbers, amount(result.control.get("rate")))
        table.add_row(escape(result.id), result.plan.gate.gate, verdict, *shown, f"{result.n:,}")
    console.print(table)
    console.print()
    for result in results:
        console.print(f"{escape(result.id)}: {escape(result.reason)}", soft_wrap=True)


def repeats_record(built: Artifact, report: GateReport) -> bool:
    """Whether this run found, to the last digit, what the artifact's gates.json says."""
    from compiler.artifact import GATES

    recorded: Any = built.read(GATES)
    found = json.loads(json.dumps(report.as_dict()))
    return bool(recorded.get("gates") == found["gates"])
