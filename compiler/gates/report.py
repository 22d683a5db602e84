"""What all gates of a build found, as data for gates.json and as pictures for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.gates.evidence import Evidence
from compiler.gates.gate import GatePlan, GateResult
from compiler.grid import GridRow

COLUMNS = 6  # pictures of each model in a row of the grid
ROWS_EACH = 2  # prompts of each gate in the grid


@dataclass(frozen=True)
class GateReport:
    """Every gate's result. `gallery` are the rows of the before/after grid."""

    results: tuple[GateResult, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    gallery: tuple[GridRow, ...] = field(default=(), repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether every gate passed; true where the spec has none."""
        return all(result.passed for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """The content of gates.json: reproducible, with no times, paths or host names."""
        return {
            "passed": self.passed,
            "gates": [result.as_dict() for result in self.results],
            **self.facts,
        }


def gallery(plan: GatePlan, evidence: Evidence) -> list[GridRow]:
    """Rows of one gate: its most-drawn prompts, or where each is drawn once, its first draws together."""
    prompts: dict[str, list[int]] = {}
    for row, draw in zip(evidence.rows(plan.draws), plan.draws, strict=True):
        prompts.setdefault(draw.prompt, []).append(row)
    repeated = sorted((p for p in prompts if len(prompts[p]) > 1), key=lambda p: -len(prompts[p]))
    if repeated:
        chosen = [(prompt, prompts[prompt]) for prompt in repeated[:ROWS_EACH]]
    else:
        chosen = [(f"{len(prompts)} prompts", [rows[0] for rows in prompts.values()])]
    return [_row(f"{plan.id}: {title}", rows[:COLUMNS], evidence) for title, rows in chosen]


def _row(title: str, rows: Sequence[int], evidence: Evidence) -> GridRow:
    return GridRow(title, evidence.base[list(rows)], evidence.edited[list(rows)])
