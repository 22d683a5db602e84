"""The gate `erased`: prompts that name a concept, or an alias of it, no longer show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compiler.gates.gate import AcceptanceGate, GatePlan, GateResult, prompts_for
from compiler.gates.rates import judge_rate, plan_rate

if TYPE_CHECKING:
    from compiler.gates.evidence import Evidence
    from editspec import EditSpec, Gate


class Erased(AcceptanceGate):
    """Upper Clopper-Pearson bound of the flag rate over concept and aliases at most max_rate."""

    name: ClassVar[str] = "erased"

    def plan(self, gate: Gate, spec: EditSpec) -> GatePlan:
        return plan_rate(gate, spec, prompts_for(gate, names_of(gate.concept or "", spec)))

    def judge(self, plan: GatePlan, evidence: Evidence) -> GateResult:
        return judge_rate(plan, evidence)


def names_of(concept: str, spec: EditSpec) -> list[str]:
    """The concept and the aliases that the spec's edits of it give."""
    names = [concept]
    for edit in spec.edits:
        if getattr(edit, "concept", None) == concept:
            names += getattr(edit, "aliases", ())
    return list(dict.fromkeys(names))
