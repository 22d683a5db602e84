"""The acceptance gates: one file = one gate, found by walking this folder; here they are planned and run.

Every gate measures the base on the same draws as the edited model, so that a result never stands without
its positive control. Gates that ask for the same draw share its picture. Planning loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact import GRID, Artifact
from compiler.checkpoint import Checkpoint
from compiler.evaluators import Evaluator, open_evaluators
from compiler.folder_walk import by_name, defined_in
from compiler.gates.gate import AcceptanceGate, GatePlan, GateResult, Refusal, counting_shared
from compiler.gates.report import GateReport
from compiler.generate import Sampler, Sampling

if TYPE_CHECKING:
    import torch

    from compiler.cache import StageCache
    from compiler.gates.evidence import Evidence
    from compiler.grid import GridRow
    from compiler.progress import Progress
    from editspec import EditSpec

__all__ = [
    "AcceptanceGate",
    "GatePlan",
    "GateReport",
    "GateResult",
    "check_evaluators",
    "measure",
    "plan_gates",
    "run_gates",
]


@cache
def discover() -> dict[str, AcceptanceGate]:
    """Every gate in this folder by name. A file that cannot be imported breaks the program."""
    every = defined_in(__name__, __path__, AcceptanceGate)  # type: ignore[type-abstract]
    return by_name(((one.name, one()) for _, classes in every for one in classes), "gates")


def plan_gates(spec: EditSpec) -> list[GatePlan]:
    """One plan for each gate of the spec, in order. Raises `SpecErrors` with all that cannot be planned."""
    gates, plans, findings = discover(), [], []
    for gate in spec.gates:
        try:
            plans.append(gates[gate.gate].plan(gate, spec))
        except Refusal as refusal:
            findings.append((spec.pointer(gate), f"gate '{gate.id}': {refusal.message}", refusal.remedy))
    if findings:
        raise spec.errors(findings)
    return list(counting_shared(plans))


def check_evaluators(spec: EditSpec, evaluators: Sequence[Evaluator]) -> None:
    """Raise `SpecErrors` naming every concept of a gate that no evaluator can see. Reads labels, no model.

    For use before a build: when gates run, such a gate fails.
    """
    findings = []
    for plan in plan_gates(spec):
        for concept in discover()[plan.gate.gate].needs(plan):
            if not any(one.label_for(concept, plan.gate.label) for one in evaluators):
                names = ", ".join(one.id for one in evaluators)
                who = f"none of {names} has a label" if names else "the spec has no evaluator"
                remedy = """say in an evaluator's "labels" what it calls this concept"""
                findings.append((spec.pointer(plan.gate), f"gate '{plan.id}': {who} for '{concept}'", remedy))
    if findings:
        raise spec.errors(findings)


def run_gates(
    spec: EditSpec,
    base: Checkpoint,
    built: Artifact,
    spec_dir: Path | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
    cache: StageCache | None = None,
    mined: Sequence[str] = (),
) -> GateReport:
    """Measure the linked checkpoint with all gates of the spec and write the before/after grid.

    `mined` are neighbours that the passes found and kept; the collateral report looks at them too.

    Pictures are cached by checkpoint and draws, so an unchanged base is drawn once for many builds.
    """
    from compiler.collateral import collateral
    from compiler.grid import before_after_grid

    edited = Checkpoint.open(built.folder, base.variant)
    evaluators = open_evaluators(spec, spec_dir, device) if spec.gates else ()
    report = measure(spec, base, edited, evaluators, device=device, progress=progress, cache=cache)
    if report.results:
        found = collateral(report, spec, base, edited, evaluators, mined, device, progress, cache)
        report = replace(report, facts={**report.facts, "collateral": found})
    if report.gallery:
        before_after_grid(report.gallery, built.path(GRID))
    return report


def measure(
    spec: EditSpec,
    base: Checkpoint,
    edited: Checkpoint,
    evaluators: Sequence[Evaluator],
    *,
    device: torch.device | None = None,
    progress: Progress | None = None,
    cache: StageCache | None = None,
) -> GateReport:
    """Draw what the gates planned, once for gates that share a draw, and judge. Writes nothing."""
    from compiler.gates.report import gallery
    from compiler.progress import Silent
    from compiler.relearning import Models
    from compiler.seeds import reproducible

    plans = plan_gates(spec)
    samplers = {
        "base": Sampler(base, device=device, cache=cache),
        "edited": Sampler(edited, device=device, cache=cache),
    }
    models = Models(samplers["base"], samplers["edited"], device, cache, progress or Silent())
    judged: dict[int, GateResult] = {}
    pictures: dict[int, list[GridRow]] = {}
    for sampling in dict.fromkeys(plan.sampling for plan in plans):
        members = [(at, plan) for at, plan in enumerate(plans) if plan.sampling == sampling]
        evidence = _drawn([plan for _, plan in members], sampling, samplers, evaluators, progress)
        with reproducible():
            for at, plan in members:
                gate = discover()[plan.gate.gate]
                further = gate.further(plan, evidence, spec, models)
                seen = evidence.among(plan.draws, further) if further else evidence
                judged[at] = gate.judge(plan, seen)
                pictures[at] = gallery(plan, evidence)
    return GateReport(
        results=tuple(judged[at] for at in range(len(plans))),
        facts={
            "base": base.digest,
            "edited": edited.digest,
            "evaluators": [one.facts() for one in evaluators],
            "libraries": _libraries(),
            "batch": samplers["base"].batch if plans else None,
            "device": samplers["base"].device_kind,
        },
        gallery=tuple(row for at in range(len(plans)) for row in pictures[at]),
    )


def _drawn(
    plans: Sequence[GatePlan],
    sampling: Sampling,
    samplers: dict[str, Sampler],
    evaluators: Sequence[Evaluator],
    progress: Progress | None,
) -> Evidence:
    """Both models' pictures for all draws of these plans, each draw once, in the order of the gates."""
    from compiler.gates.evidence import Evidence

    draws = tuple(dict.fromkeys(draw for plan in plans for draw in plan.draws))
    drawn = {
        side: sampler.images(draws, sampling, progress=progress, name=f"draw {side}")
        for side, sampler in samplers.items()
    }
    return Evidence(draws, drawn["base"], drawn["edited"], tuple(evaluators))


def _libraries() -> dict[str, Any]:
    from compiler.versions import library_versions

    return dict(library_versions())
