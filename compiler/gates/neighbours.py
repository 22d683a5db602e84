"""The gate `neighbours`: concepts near an edited one, where damage shows first, keep their looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compiler.gates.gate import AcceptanceGate, GatePlan, GateResult
from compiler.gates.losses import judge_loss, plan_loss

if TYPE_CHECKING:
    from compiler.gates.evidence import Evidence
    from editspec import EditSpec, Gate


class Neighbours(AcceptanceGate):
    """Mean loss over the given neighbours and the preserved concepts at most max_loss; names the worst."""

    name: ClassVar[str] = "neighbours"

    def plan(self, gate: Gate, spec: EditSpec) -> GatePlan:
        edited = {getattr(edit, "concept", None) for edit in spec.edits}
        near = [*gate.concepts, *spec.preserve.concepts]
        return plan_loss(gate, spec, [one for one in dict.fromkeys(near) if one not in edited])

    def judge(self, plan: GatePlan, evidence: Evidence) -> GateResult:
        return judge_loss(plan, evidence)
