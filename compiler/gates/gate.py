"""The contract of an acceptance gate: draws planned beforehand, a verdict with its limit and its control."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.generate import Draw, Sampling
from compiler.seeds import derive
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    from compiler.gates.evidence import Evidence
    from compiler.generate import Images
    from compiler.relearning import Models
    from editspec import EditSpec, Gate

SHARE = "share"  # the unit of rates, losses and drifts
SEED_BITS = 31  # seeds that fit every framework, and that a person can type


class Refusal(Exception):
    """A gate that cannot be planned as it stands: what is wrong and what would put it right."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True)
class Trial:
    """One draw, and the concept that its picture is about; None where no concept is judged."""

    draw: Draw
    concept: str | None = None


@dataclass(frozen=True)
class GatePlan:
    """What a gate will draw and what it will accept, fixed before any picture is seen."""

    gate: Gate
    trials: tuple[Trial, ...]
    limit: float
    allowed: int | None = None
    shared: int = 0
    unit: str = SHARE
    further_evals: int = 0
    """Evals of what the gate does beside its draws."""

    @property
    def id(self) -> str:
        """The gate's name in reports."""
        return self.gate.id

    @property
    def sampling(self) -> Sampling:
        """How its pictures are drawn."""
        return Sampling(self.gate.guidance_scale, self.gate.steps)

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Its draws, in order."""
        return tuple(trial.draw for trial in self.trials)

    @property
    def evals(self) -> int:
        """U-Net evals on base and edited model, without the draws that earlier gates have made already.

        With what the gate does beside them; a backward counts two.
        """
        passes = 2 if self.gate.guidance_scale > 1 else 1
        return 2 * (len(set(self.draws)) - self.shared) * self.gate.steps * passes + self.further_evals

    def as_dict(self) -> dict[str, Any]:
        """JSON facts for plan.json and gates.json."""
        concepts = list(dict.fromkeys(trial.concept for trial in self.trials if trial.concept))
        return {
            "id": self.id,
            "gate": self.gate.gate,
            "concepts": concepts,
            "trials": len(self.trials),
            "allowed_failures": self.allowed,
            "limit": self.limit,
            "confidence": self.gate.confidence,
            "prompts": list(dict.fromkeys(draw.prompt for draw in self.draws)),
            "sampling": self.sampling.as_dict(),
            "evals": self.evals,
        }


@dataclass(frozen=True)
class GateResult:
    """What a gate found. `bound` is held against `limit`; rates, losses and drifts all lie near 0 to 1.

    With the unit "steps" these three count steps, and the bound is the most that the result outlasted.

    `control` is the base on the same draws: a gate that the base would pass too proves nothing and fails.
    """

    plan: GatePlan
    passed: bool
    reason: str
    observed: float | None = None
    bound: float | None = None
    limit: float | None = None
    failures: int | None = None
    control: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The gate's name."""
        return self.plan.id

    @property
    def n(self) -> int:
        """Draws judged."""
        return len(self.plan.trials)

    def as_dict(self) -> dict[str, Any]:
        """JSON facts, the same on every run of the same build."""
        return {
            "id": self.id,
            "gate": self.plan.gate.gate,
            "passed": self.passed,
            "reason": self.reason,
            "observed": self.observed,
            "bound": self.bound,
            "limit": self.limit,
            "unit": self.plan.unit,
            "n": self.n,
            "failures": self.failures,
            "control": dict(self.control),
            "plan": self.plan.as_dict(),
            "details": dict(self.details),
        }


class AcceptanceGate(ABC):
    """One kind of gate. Planning sees the spec alone; judging sees base and edited pictures of its draws."""

    name: ClassVar[str]
    """The gate's name in a spec."""

    def further(
        self, plan: GatePlan, evidence: Evidence, spec: EditSpec, models: Models
    ) -> Mapping[tuple[float, int], Images]:
        """For a gate that does more than look: pictures of its draws by what it makes of the edited model."""
        return {}

    @abstractmethod
    def plan(self, gate: Gate, spec: EditSpec) -> GatePlan:
        """Draws and what is accepted, without torch. Raises `Refusal`."""

    @abstractmethod
    def judge(self, plan: GatePlan, evidence: Evidence) -> GateResult:
        """Pass or fail, with the measurement beside its limit and the base's as control.

        Where the gate drew further pictures, the evidence holds them and its draws alone.
        """

    def needs(self, plan: GatePlan) -> tuple[str, ...]:
        """Concepts that an evaluator must be able to see."""
        return tuple(dict.fromkeys(trial.concept for trial in plan.trials if trial.concept))


def prompts_for(gate: Gate, names: Sequence[str]) -> list[str]:
    """The gate's prompts with each name in place of {}, templates in the outer loop; none twice."""
    templates = gate.prompts or TEMPLATES[gate.kind]
    return list(dict.fromkeys(fill(template, name) for template in templates for name in names))


def spread(prompts: Sequence[tuple[str, str | None]], count: int, seed: int) -> tuple[Trial, ...]:
    """`count` trials over (prompt, concept) pairs in turn, each with a seed of its own.

    The k-th draw of a prompt is the same in every gate of a spec, so gates share pictures; no two draws
    share their noise, so trials are independent.
    """
    trials = []
    for position in range(count):
        prompt, concept = prompts[position % len(prompts)]
        number = derive(seed, "gate", prompt, position // len(prompts)) % 2**SEED_BITS
        trials.append(Trial(Draw(prompt, number), concept))
    return tuple(trials)


def counting_shared(plans: Sequence[GatePlan]) -> tuple[GatePlan, ...]:
    """The plans, each knowing how many of its draws the plans before it make as well."""
    made: dict[Sampling, set[Draw]] = {}
    result = []
    for plan in plans:
        before = made.setdefault(plan.sampling, set())
        result.append(replace(plan, shared=len(before.intersection(plan.draws))))
        before.update(plan.draws)
    return tuple(result)


def percent(rate: float) -> str:
    """A rate for people: "4.9 %"."""
    return f"{100 * rate:.1f} %"


def amount(value: float | None, unit: str = SHARE) -> str:
    """A measurement, bound or limit for people: "4.9 %", "20 steps", "-" for none."""
    if value is None:
        return "-"
    return percent(value) if unit == SHARE else f"{value:,} {unit}"
