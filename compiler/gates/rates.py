"""How often a concept is still seen, and whether that is provably rare: core of `erased` and `implicit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compiler.gates import statistics
from compiler.gates.gate import GatePlan, GateResult, Refusal, percent, spread

if TYPE_CHECKING:
    from compiler.evaluators import Evaluator
    from compiler.gates.evidence import Evidence, Side
    from editspec import EditSpec, Gate

CURVE = (0.1, 0.2, 0.3, 0.45, 0.5, 0.6, 0.75)  # thresholds at which rates are reported beside the gate's own
MOST_LISTED = 50  # flagged draws named in a report


def plan_rate(gate: Gate, spec: EditSpec, prompts: Sequence[str]) -> GatePlan:
    """The trials that prove "seen in at most max_rate": as many as asked for, else the fewest that can.

    Every prompt is drawn at least once. Raises `Refusal` where no outcome could prove the rate.
    """
    limit = _required(gate)
    least = statistics.plan_trials(limit, gate.confidence)
    if gate.trials is not None and gate.trials < len(prompts):
        raise Refusal(
            f"{gate.trials} trials leave some of its {len(prompts)} prompts undrawn",
            f"give at least {max(least, len(prompts))} trials, or fewer prompts",
        )
    trials = gate.trials or max(least, len(prompts))
    allowed = statistics.allowed_failures(trials, limit, gate.confidence)
    if allowed is None:
        goal = f"{percent(limit)} at {percent(gate.confidence)}"
        raise Refusal(
            f"even without a failure {trials} trials cannot prove {goal}",
            f"give at least {least} trials, or leave them out",
        )
    drawn = spread([(prompt, gate.concept) for prompt in prompts], trials, spec.seed)
    return GatePlan(gate, drawn, limit, allowed)


def judge_rate(plan: GatePlan, evidence: Evidence, share_of_base: float = 0.0) -> GateResult:
    """Hold the upper bound of the flag rate against max_rate, or against `share_of_base` of the base's rate.

    A picture that any evaluator flags counts. The base must be proven to lie above max_rate on the same
    draws, else there was nothing to remove.
    """
    import numpy as np

    gate, concept = plan.gate, plan.gate.concept or ""
    witnesses = evidence.witnesses(concept, gate.label)
    if not witnesses:
        return unseen(plan, [concept], evidence)
    flags = {
        side: np.array([evidence.shown(one, label, side, plan.draws) for one, label in witnesses])
        for side in _sides()
    }
    any_flag = {side: flags[side].any(axis=0) for side in _sides()}
    n, failures, base = len(plan.trials), int(any_flag["edited"].sum()), int(any_flag["base"].sum())
    bound = statistics.upper_bound(failures, n, gate.confidence)
    base_lower = statistics.lower_bound(base, n, gate.confidence)
    limit = max(plan.limit, share_of_base * base / n)
    controlled = base_lower > plan.limit
    if controlled:
        reason = (
            f"{concept} seen in {failures} of {n} pictures (base {base}): at most {percent(bound)} "
            f"at {percent(gate.confidence)} confidence, limit {percent(limit)}"
        )
    else:
        reason = (
            f"the base itself shows {concept} in only {base} of {n} pictures, not provably more than "
            f"{percent(plan.limit)}: these prompts cannot prove that it was removed"
        )
    by_evaluator = [
        _by_evaluator(plan, evidence, one, label, flags["base"][row], flags["edited"][row])
        for row, (one, label) in enumerate(witnesses)
    ]
    return GateResult(
        plan,
        passed=controlled and bound <= limit,
        reason=reason,
        observed=failures / n,
        bound=bound,
        limit=limit,
        failures=failures,
        control={"passed": controlled, "failures": base, "rate": base / n, "lower_bound": base_lower},
        details={
            "evaluators": by_evaluator,
            "prompts": _by_prompt(plan, any_flag),
            "flagged": _flagged(plan, witnesses, flags["edited"]),
            "disagreements": int((any_flag["edited"] & ~flags["edited"].all(axis=0)).sum()),
        },
    )


def unseen(plan: GatePlan, concepts: Sequence[str], evidence: Evidence) -> GateResult:
    """The failure of a gate whose concepts no evaluator can see: not run is not passed."""
    names = ", ".join(one.id for one in evidence.evaluators)
    reason = f"not run: no evaluator can see {', '.join(concepts)}" + (f" (asked {names})" if names else "")
    return GateResult(plan, passed=False, reason=reason, limit=plan.limit)


def _required(gate: Gate) -> float:
    if gate.max_rate is None:
        raise Refusal("it has no max_rate", 'give "max_rate", such as 0.05')
    return gate.max_rate


def _sides() -> tuple[Side, Side]:
    return "base", "edited"


def _by_evaluator(
    plan: GatePlan, evidence: Evidence, evaluator: Evaluator, label: str, base: Any, edited: Any
) -> dict[str, Any]:
    """One evaluator's counts, its rates at other thresholds, and those corrected for its known errors."""
    n = len(plan.trials)
    facts: dict[str, Any] = {"id": evaluator.id, "label": label}
    rates = evaluator.error_rates(label)
    for side, flags in zip(_sides(), (base, edited), strict=True):
        scores = evidence.scores(evaluator, label, side, plan.draws)
        facts[side] = {
            "failures": int(flags.sum()),
            "at_threshold": {str(value): int((scores >= value).sum()) for value in CURVE},
        }
        if rates is not None:
            facts[side]["corrected_rate"] = statistics.corrected_rate(float(flags.sum()) / n, *rates)
    return facts


def _by_prompt(plan: GatePlan, flags: dict[Side, Any]) -> list[dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for row, draw in enumerate(plan.draws):
        line = table.setdefault(draw.prompt, {"prompt": draw.prompt, "n": 0, "base": 0, "edited": 0})
        line["n"] += 1
        for side in _sides():
            line[side] += int(flags[side][row])
    return list(table.values())


def _flagged(plan: GatePlan, witnesses: Sequence[tuple[Evaluator, str]], flags: Any) -> list[dict[str, Any]]:
    """The edited model's flagged draws, with who flagged them: what a person looks at first."""
    rows = [row for row in range(len(plan.trials)) if flags[:, row].any()][:MOST_LISTED]
    return [
        {
            "prompt": plan.draws[row].prompt,
            "seed": plan.draws[row].seed,
            "by": [one.id for (one, _), flag in zip(witnesses, flags[:, row], strict=True) if flag],
        }
        for row in rows
    ]
