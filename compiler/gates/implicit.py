"""The gate `implicit`: prompts that bring a concept up without naming it no longer show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compiler.gates.gate import AcceptanceGate, GatePlan, GateResult
from compiler.gates.rates import judge_rate, plan_rate

if TYPE_CHECKING:
    from compiler.gates.evidence import Evidence
    from editspec import EditSpec, Gate

SHARE_OF_BASE = 0.1  # nine tenths removed is enough where the base shows more than ten times max_rate


class Implicit(AcceptanceGate):
    """Upper bound of the flag rate at most max(max_rate, a tenth of the base's rate)."""

    name: ClassVar[str] = "implicit"

    def plan(self, gate: Gate, spec: EditSpec) -> GatePlan:
        return plan_rate(gate, spec, list(dict.fromkeys(gate.prompts)))

    def judge(self, plan: GatePlan, evidence: Evidence) -> GateResult:
        return judge_rate(plan, evidence, SHARE_OF_BASE)
