"""The HTML report: one page, for people, of all that an artifact's records say. It runs no script.

A function of the records alone: no time, host or path of a machine is in it. Its sentences are the model
card's; what it adds are charts, every prompt's counts, and what edits did to their neighbours and each other.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from compiler.artifact import EDITS, GATES, GRID, LOCK, REPORT, SPEC, Artifact
from exporters import charts
from exporters.card import VERIFY
from exporters.card_edits import ORIGINALS, faithfulness, settings, subject
from exporters.card_head import METRICS
from exporters.limits import limits
from exporters.origin import REBUILD, base_name, licence, origin

if TYPE_CHECKING:
    from jinja2 import Environment
    from markdown_it import MarkdownIt
    from markupsafe import Markup

TEMPLATE = "report.html.j2"


def write_report(artifact: Artifact) -> None:
    """Write provenance/report.html from what provenance/ says; the picture beside it is not repeated."""
    path = artifact.path(REPORT)
    path.write_text(page(artifact, PurePosixPath(GRID).name), "utf-8")
    path.chmod(0o644)


def whole_page(artifact: Artifact) -> str:
    """The page as one file that can be sent alone: the picture is in it."""
    grid = artifact.path(GRID)
    if not grid.is_file():
        return page(artifact, "")
    return page(artifact, "data:image/png;base64," + base64.b64encode(grid.read_bytes()).decode("ascii"))


def page(artifact: Artifact, picture: str) -> str:
    """The page as HTML; `picture` is the address of the grid, which is shown where the artifact has one."""
    spec, lock = artifact.read(SPEC), artifact.read(LOCK)
    edits, gates = artifact.read(EDITS), artifact.read(GATES)
    runs = edits["passes"]
    return _environment().get_template(TEMPLATE).render(
        spec=spec,
        lock=lock,
        edits=edits,
        gates=gates["gates"],
        accepted=gates["passed"],
        picture=picture if artifact.path(GRID).is_file() else "",
        base=base_name(lock),
        what=METRICS,
        edited=[_edited(edit, runs) for edit in spec["edits"]],
        originals=faithfulness(edits),
        original_of=ORIGINALS,
        interference=[(run, run["interference"]) for run in runs if run.get("interference")],
        collateral=(gates.get("collateral") or {}).get("concepts", []),
        worst=(gates.get("collateral") or {}).get("worst"),
        evaluators=gates.get("evaluators", []),
        limits=limits(gates),
        origin=origin(lock),
        rebuild=REBUILD,
        derived=lock.get("derived"),
        verify=VERIFY,
        written=json.dumps(spec, indent=2, ensure_ascii=False),
        licence=list(licence(lock)),
    )  # fmt: skip


def _edited(edit: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table of edits."""
    run = next(run for run in runs if edit["id"] in run["edits"])
    relative = [tensor["relative"] or 0.0 for tensor in run["tensors"]] or [0.0]
    return {
        "id": edit["id"],
        "about": subject(edit),
        "settings": settings(edit),
        "pass": run["pass"],
        "together": len(run["edits"]) - 1,
        "tensors": len(run["tensors"]),
        "parameters": sum(tensor["parameters"] for tensor in run["tensors"]),
        "evals": run["evals"],
        "mean": sum(relative) / len(relative),
        "largest": max(relative),
    }


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from compiler.gates.gate import amount, percent

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": _inline, "md_block": _block, "percent": percent, "amount": amount}
    environment.globals |= {
        "gate_bar": charts.gate_bar,
        "pair_bar": charts.pair_bar,
        "columns": charts.columns,
        "curve": charts.curve,
    }
    return environment


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False})


def _inline(words: str) -> Markup:
    from markupsafe import Markup

    return Markup(_markdown().renderInline(words))


def _block(words: str) -> Markup:
    from markupsafe import Markup

    return Markup(_markdown().render(words))
