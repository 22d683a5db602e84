"""The gate `preserved`: concepts to keep are recognised nearly as often as with the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compiler.gates.gate import AcceptanceGate, GatePlan, GateResult
from compiler.gates.losses import judge_loss, plan_loss

if TYPE_CHECKING:
    from compiler.gates.evidence import Evidence
    from editspec import EditSpec, Gate


class Preserved(AcceptanceGate):
    """Mean loss over the listed concepts, else over the spec's preserved ones, at most max_loss."""

    name: ClassVar[str] = "preserved"

    def plan(self, gate: Gate, spec: EditSpec) -> GatePlan:
        return plan_loss(gate, spec, list(dict.fromkeys(gate.concepts or spec.preserve.concepts)))

    def judge(self, plan: GatePlan, evidence: Evidence) -> GateResult:
        return judge_loss(plan, evidence)
