"""What a build did, for people: every gate's measurement beside its limit, and how far each edit moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.artifact import EDITS, GATES, GRID, LOCK, PLAN, REPORT, Artifact

if TYPE_CHECKING:
    from rich.console import Console


def as_dict(artifact: Artifact) -> dict[str, Any]:
    """What was built, as JSON."""
    planned, lock, gates = artifact.read(PLAN), artifact.read(LOCK), artifact.read(GATES)
    runs = artifact.read(EDITS)["passes"]
    grid, report = artifact.path(GRID), artifact.path(REPORT)
    return {
        "ok": gates["passed"],
        "artifact": str(artifact.folder),
        "name": planned["name"],
        "spec": lock["spec"],
        "base": lock["base"]["digest"],
        "passes": planned["passes"],
        "gates": gates["gates"],
        "collateral": gates.get("collateral"),
        "faithfulness": {name: found for run in runs if (found := _found(run)) for name in run["edits"]},
        "grid": str(grid) if grid.is_file() else None,
        "report": str(report) if report.is_file() else None,
    }


def show(artifact: Artifact, console: Console) -> None:
    """Tables of gates and edits, the reasons of the gates, and where pictures and report are."""
    gates = artifact.read(GATES)["gates"]
    if gates:
        _show_gates(gates, console)
    else:
        console.print("no gates: the result carries no proof")
    _show_collateral(artifact.read(GATES).get("collateral") or {}, console)
    console.print()
    runs = artifact.read(EDITS)["passes"]
    _show_edits(runs, console)
    _show_faithfulness(runs, console)
    console.print()
    for what, name in (("before and after", GRID), ("report", REPORT)):
        if artifact.path(name).is_file():
            place = f"{what}: {artifact.path(name)}"
            console.print(place, soft_wrap=True, highlight=False, markup=False)


def _show_gates(gates: list[dict[str, Any]], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    from compiler.gates.gate import SHARE, amount

    table = Table("gate", "kind", "verdict", box=None, header_style="bold", pad_edge=False)
    for head in ("measured", "bound", "limit", "base", "draws"):
        table.add_column(head, justify="right")
    for gate in gates:
        verdict = "[green]passed[/green]" if gate["passed"] else "[bold red]failed[/bold red]"
        unit = gate.get("unit", SHARE)
        numbers = [amount(gate[key], unit) for key in ("observed", "bound", "limit")]
        shown = (*numbers, amount(gate["control"].get("rate")))
        table.add_row(escape(gate["id"]), gate["gate"], verdict, *shown, f"{gate['n']:,}")
    console.print(table)
    for gate in gates:
        if not gate["passed"]:
            console.print(f"{gate['id']}: {gate['reason']}", soft_wrap=True, markup=False, highlight=False)


def _show_collateral(report: dict[str, Any], console: Console) -> None:
    """What lies near the edited concepts, nearest first, with what it lost."""
    from rich.markup import escape
    from rich.table import Table

    rows = report.get("concepts", [])
    if not rows:
        return
    table = Table("neighbour", "near", box=None, header_style="bold", pad_edge=False)
    for head in ("cosine", "base", "edited", "lost", "draws"):
        table.add_column(head, justify="right")
    for row in rows:
        shares = (f"{100 * row[side] / row['n']:.0f} %" for side in ("base", "edited"))
        name = f"[bold]{escape(row['concept'])}[/bold]" if row["concept"] == report["worst"] else None
        lost = f"{100 * row['loss']:.1f}"
        cosine = f"{row['cosine']:.2f}"
        table.add_row(
            name or escape(row["concept"]), escape(row["near"]), cosine, *shares, lost, f"{row['n']:,}"
        )
    console.print()
    console.print(table)
    if report["worst"]:
        console.print(f"most lost: {report['worst']}", soft_wrap=True, markup=False, highlight=False)


def _show_edits(runs: list[dict[str, Any]], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("edits", box=None, header_style="bold", pad_edge=False)
    table.add_column("pass", no_wrap=True)
    for head in ("tensors", "parameters", "evals", "mean change", "largest"):
        table.add_column(head, justify="right")
    for run in runs:
        relative = [tensor["relative"] or 0.0 for tensor in run["tensors"]] or [0.0]
        table.add_row(
            escape(", ".join(run["edits"])),
            run["pass"],
            f"{len(run['tensors']):,}",
            f"{sum(tensor['parameters'] for tensor in run['tensors']):,}",
            f"{run['evals']:,}",
            f"{100 * sum(relative) / len(relative):.2f} %",
            f"{100 * max(relative):.2f} %",
        )
    console.print(table)


def _show_faithfulness(runs: list[dict[str, Any]], console: Console) -> None:
    """How much of what guidance changes at runtime the weights that have learned it miss."""
    for run in runs:
        missed: dict[str, list[str]] = {}
        for one in _found(run):
            told = f"{100 * one['missed']:.0f} % at guidance {one['guidance_scale']:g}"
            missed.setdefault(one.get("phrase", ""), []).append(told)
        for phrase, shares in missed.items():
            who = f"{', '.join(run['edits'])}{f', {phrase!r}' if phrase else ''}"
            what = f"{who}: of what its original changes at runtime it misses {', '.join(shares)}"
            console.print(what, soft_wrap=True, markup=False, highlight=False)


def _found(run: dict[str, Any]) -> list[dict[str, Any]]:
    """What a pass recorded of how near it came to a runtime original, for each guidance scale."""
    found: list[dict[str, Any]] = run.get("record", {}).get("faithfulness", [])
    return found
