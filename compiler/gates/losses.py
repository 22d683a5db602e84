"""How much less often concepts are recognised than with the base: core of `preserved` and `neighbours`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compiler.gates import statistics
from compiler.gates.gate import GatePlan, GateResult, Refusal, percent, prompts_for, spread
from compiler.gates.rates import unseen

if TYPE_CHECKING:
    from compiler.gates.evidence import Evidence
    from editspec import EditSpec, Gate


def plan_loss(gate: Gate, spec: EditSpec, concepts: Sequence[str]) -> GatePlan:
    """Paired draws that prove "loses at most max_loss", as many for each concept.

    By default so many that an edit without harm passes four times in five.
    """
    if gate.max_loss is None:
        raise Refusal("it has no max_loss", 'give "max_loss", such as 0.03')
    if not concepts:
        raise Refusal("it has no concepts to watch", 'give it "concepts", or the spec "preserve" concepts')
    whole = [prompt for prompt in gate.prompts if "{}" not in prompt]
    if whole and len(concepts) > 1:
        raise Refusal(
            f"the prompt '{whole[0]}' does not say which of its {len(concepts)} concepts it shows",
            "write {} where the concept goes, or give such prompts a gate with one concept",
        )
    least = statistics.least_pairs(gate.max_loss, gate.confidence)
    if gate.trials is not None and gate.trials < least:
        raise Refusal(
            f"{gate.trials} paired draws cannot prove {percent(gate.max_loss)}, even if no picture changes",
            f"give at least {least} trials, or leave them out",
        )
    pairs = [(prompt, concept) for concept in concepts for prompt in prompts_for(gate, [concept])]
    templates = len(pairs) // len(concepts)
    in_turn = [pairs[k * templates + t] for t in range(templates) for k in range(len(concepts))]
    wanted = gate.trials or statistics.plan_pairs(gate.max_loss, gate.confidence)
    count = -(-wanted // len(concepts)) * len(concepts)
    return GatePlan(gate, spread(in_turn, count, spec.seed), gate.max_loss)


def judge_loss(plan: GatePlan, evidence: Evidence) -> GateResult:
    """Hold the upper bound of the mean loss over concepts (score interval of paired draws) against max_loss.

    A picture shows its concept only when all evaluators that know it agree. Every concept must be proven
    to be recognised by the base more often than max_loss, else its loss could not be seen.
    """
    gate = plan.gate
    concepts = list(dict.fromkeys(trial.concept or "" for trial in plan.trials))
    if blind := [concept for concept in concepts if not evidence.witnesses(concept)]:
        return unseen(plan, blind, evidence)
    base, edited = evidence.recognised(plan.trials, "base"), evidence.recognised(plan.trials, "edited")
    table = []
    for concept in concepts:
        rows = [row for row, trial in enumerate(plan.trials) if trial.concept == concept]
        table.append(_compared(concept, base[rows], edited[rows], gate.confidence))
    lost, gained = int((base & ~edited).sum()), int((~base & edited).sum())
    n = len(plan.trials)
    loss = statistics.paired_loss(lost, gained, n, gate.confidence)
    worst = max(table, key=lambda line: line["loss"])
    uncontrolled = [line["concept"] for line in table if line["base_lower_bound"] <= plan.limit]
    if uncontrolled:
        names = ", ".join(uncontrolled)
        reason = f"the base itself is not seen to show {names}: a loss could not be measured"
    else:
        reason = (
            f"recognition lost {100 * loss.estimate:.1f} points over {len(concepts)} concepts and {n} draws: "
            f"at most {100 * loss.upper:.1f} at {percent(gate.confidence)} confidence, limit "
            f"{100 * plan.limit:.1f}; worst {worst['concept']} ({100 * worst['loss']:.1f})"
        )
    return GateResult(
        plan,
        passed=not uncontrolled and loss.upper <= plan.limit,
        reason=reason,
        observed=loss.estimate,
        bound=loss.upper,
        limit=plan.limit,
        failures=lost,
        control={"passed": not uncontrolled, "recognised": int(base.sum()), "rate": float(base.mean())},
        details={
            "concepts": table,
            "worst": worst["concept"],
            "recognised": int(edited.sum()),
            "lost": lost,
            "gained": gained,
            "mcnemar_p": statistics.mcnemar(lost, gained),
        },
    )


def _compared(concept: str, base: Any, edited: Any, confidence: float) -> dict[str, Any]:
    """One concept: recognised by base and edited model on the same draws."""
    n, lost, gained = len(base), int((base & ~edited).sum()), int((~base & edited).sum())
    loss = statistics.paired_loss(lost, gained, n, confidence)
    return {
        "concept": concept,
        "n": n,
        "base": int(base.sum()),
        "edited": int(edited.sum()),
        "base_lower_bound": statistics.lower_bound(int(base.sum()), n, confidence),
        "loss": loss.estimate,
        "loss_upper_bound": loss.upper,
    }
