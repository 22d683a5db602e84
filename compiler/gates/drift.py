"""The gate `drift`: pictures for prompts that have nothing to do with the edits stay what they were.

Drift is the mean distance between base and edited picture of a draw, in units of the distance between two
seeds of the base: 0 is the same picture, 1 is a picture as different as another roll of the dice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from compiler.gates import statistics
from compiler.gates.gate import AcceptanceGate, GatePlan, GateResult, Refusal, percent, prompts_for, spread

if TYPE_CHECKING:
    import numpy as np

    from compiler.gates.evidence import Evidence
    from editspec import EditSpec, Gate

    Distances = np.ndarray[Any, np.dtype[np.float64]]

DEFAULT_TRIALS = 60
SEEDS_EACH = 2  # the floor is the distance between seeds of one prompt
PLAIN_PROMPTS = (
    "a landscape", "a house by a lake", "a street in a town", "a bowl of fruit", "a tree on a hill",
    "a room with a table", "a boat on the sea", "a dog in the grass", "a cup on a shelf", "a cloudy sky",
)  # fmt: skip


class Drift(AcceptanceGate):
    """Upper bound of the drift at most max_drift, by a bootstrap over prompts."""

    name: ClassVar[str] = "drift"

    def plan(self, gate: Gate, spec: EditSpec) -> GatePlan:
        if gate.max_drift is None:
            raise Refusal("it has no max_drift", 'give "max_drift", such as 0.2')
        concepts = gate.concepts or spec.preserve.concepts
        whole = [prompt for prompt in gate.prompts if "{}" not in prompt]
        prompts = whole or (prompts_for(gate, concepts) if concepts else list(PLAIN_PROMPTS))
        least = SEEDS_EACH * len(prompts)
        if gate.trials is not None and gate.trials < least:
            raise Refusal(
                f"{gate.trials} trials give some of its {len(prompts)} prompts fewer than {SEEDS_EACH} seeds",
                f"give at least {least} trials, or fewer prompts",
            )
        wanted = gate.trials or max(DEFAULT_TRIALS, least)
        count = -(-wanted // len(prompts)) * len(prompts)  # as many seeds for each prompt
        trials = spread([(prompt, None) for prompt in prompts], count, spec.seed)
        return GatePlan(gate, trials, gate.max_drift)

    def judge(self, plan: GatePlan, evidence: Evidence) -> GateResult:
        pairs = {"pixels": _pixel_distances(plan, evidence)}
        if (found := _feature_distances(plan, evidence)) is not None:
            pairs = {found[0]: found[1], **pairs}
        measured = {
            name: _drift(moved, floor, plan) for name, (moved, floor) in pairs.items() if floor.mean() > 0
        }
        if not measured:
            reason = "the base draws the same picture from every seed: drift has no unit"
            control = {"passed": False, "distance": 0.0}
            return GateResult(plan, passed=False, reason=reason, limit=plan.limit, control=control)
        by, (drift, moved_mean, floor_mean) = next(iter(measured.items()))
        return GateResult(
            plan,
            passed=drift.upper <= plan.limit,
            reason=(
                f"pictures moved by {percent(drift.estimate)} of the distance between two seeds ({by}): at "
                f"most {percent(drift.upper)} at {percent(plan.gate.confidence)} confidence, limit "
                f"{percent(plan.limit)}"
            ),
            observed=drift.estimate,
            bound=drift.upper,
            limit=plan.limit,
            control={"passed": True, "distance": floor_mean},
            details={
                "measured_by": by,
                "distance": moved_mean,
                "all": {
                    name: {"drift": one.estimate, "upper_bound": one.upper, "distance": mean, "floor": base}
                    for name, (one, mean, base) in measured.items()
                },
            },
        )


def _drift(moved: Distances, floor: Distances, plan: GatePlan) -> tuple[statistics.Bounds, float, float]:
    """The ratio with its bounds, and both means (distances of base to edited, and of seed to seed)."""
    prompts = [draw.prompt for draw in plan.draws]
    ratio = statistics.bootstrap_ratio(moved, floor, prompts, confidence=plan.gate.confidence)
    return ratio, float(moved.mean()), float(floor.mean())


def _next_seed(plan: GatePlan) -> list[int]:
    """For each draw the row of its prompt's next seed, the last one's next being the first."""
    rows: dict[str, list[int]] = {}
    for row, draw in enumerate(plan.draws):
        rows.setdefault(draw.prompt, []).append(row)
    follows = {row: same[(k + 1) % len(same)] for same in rows.values() for k, row in enumerate(same)}
    return [follows[row] for row in range(len(plan.draws))]


def _pixel_distances(plan: GatePlan, evidence: Evidence) -> tuple[Distances, Distances]:
    """Root mean square over pixels in [0, 1], base to edited and base to the next seed's base."""
    import numpy as np

    rows = evidence.rows(plan.draws)
    base, edited = evidence.base[rows], evidence.edited[rows]

    def distances(first: Any, second: Any) -> Distances:
        # picture by picture: the floats of all at once would be eight times their bytes
        squares = [np.square(a / 255.0 - b / 255.0).mean() for a, b in zip(first, second, strict=True)]
        return np.sqrt(np.array(squares, np.float64))

    return distances(base, edited), distances(base, base[_next_seed(plan)])


def _feature_distances(plan: GatePlan, evidence: Evidence) -> tuple[str, tuple[Distances, Distances]] | None:
    """The same between an evaluator's features, which see what pixels do not; None if none has any."""
    import numpy as np

    base, edited = evidence.features("base", plan.draws), evidence.features("edited", plan.draws)
    if base is None or edited is None:
        return None
    before, after = base[1].astype(np.float64), edited[1].astype(np.float64)
    moved: Distances = np.linalg.norm(before - after, axis=1)
    floor: Distances = np.linalg.norm(before - before[_next_seed(plan)], axis=1)
    return f"features of {base[0]}", (moved, floor)
