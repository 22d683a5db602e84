"""Embeddings that no word has, learned against the edited weights: white box, with gradients.

A token in place of the concept's own (concept inversion, Pham et al. 2024: textual inversion, Gal et al.
2023, on an edited model), or a prefix before the whole prompt (as UnlearnDiffAtk searches words, Zhang et al.
2024; here without rounding to words, so a stronger attacker than one who types). Each look has embeddings of
its own, from its own random start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from compiler.attacks.attack import Access, Attack, Found, Target

if TYPE_CHECKING:
    from compiler.adversary import Way
    from compiler.attacks.models import Models

EXAMPLES = 8  # of each look in a step
TRAJECTORIES, ROWS, SAMPLING_STEPS = 8, 10, 20  # of the base for each prompt, where it draws the concept


class _Learned(Attack):
    way: ClassVar[Way]
    access: ClassVar[Access] = "weights"

    def evals(self, target: Target) -> int:
        return 3 * target.steps * EXAMPLES * target.looks

    def find(self, target: Target, models: Models, advance: Callable[[int], None]) -> Found:
        import torch

        from compiler.adversary import Victim, attack
        from compiler.bank_request import BankRequest

        prompts = target.prompts
        counts = (TRAJECTORIES,) * len(prompts)
        request = BankRequest(prompts, counts, target.seed, steps=SAMPLING_STEPS, strata=ROWS)
        bank = models.teacher.bank(request)
        rows = torch.arange(len(bank))
        read = models.encode(prompts)
        victim = Victim(target.concept, prompts, read, bank, rows, bank.column("prompt"))
        done = attack(
            models.edited,
            models.text,
            victim,
            self.way,
            batch=EXAMPLES * target.looks,
            seed=target.seed,
            names=("red team",),
            steps=target.steps,
            restarts=target.looks,
            advance=advance,
        )
        facts = {"distance_before": _short(done.before), "distance_after": _short(done.after)}
        return Found(done.rows, self.evals(target), facts)


class LearnedToken(_Learned):
    """A learned embedding in place of each of the concept's tokens."""

    name = "token"
    way = "token"


class LearnedPrefix(_Learned):
    """Two learned embeddings before the prompt."""

    name = "prefix"
    way = "prefix"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
