"""What an attack is: it sees the models and a target, and finds what the edited model is to read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from compiler.attacks.models import Models
    from compiler.conditioning import Conditioning

Access = Literal["prompts", "weights"]


@dataclass(frozen=True)
class Target:
    """A concept that should be gone: prompts that name it, its other names, and how hard it is attacked.

    `looks` pictures are made of each of `trials` draws, which take turns with the prompts. `steps` are those
    of a search with gradients.
    """

    concept: str
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    seed: int
    trials: int
    looks: int
    steps: int


@dataclass(frozen=True)
class Found:
    """What the edited model is to read: for each look a row for each prompt; evals it took, JSON facts."""

    rows: Conditioning
    evals: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


class Attack(ABC):
    """One way to bring a concept back."""

    name: ClassVar[str]
    access: ClassVar[Access]
    """What the attacker holds: prompts alone, or the weights with their gradients."""

    @abstractmethod
    def evals(self, target: Target) -> int:
        """U-Net evals of the search, pictures apart; a backward counts two."""

    @abstractmethod
    def find(self, target: Target, models: Models, advance: Callable[[int], None]) -> Found:
        """Search: `looks` * prompts rows, one look's after the other's. Equal targets give equal bits."""
