from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from compiler.bank_request import BankRequest
from compiler.effects import effect_of
from compiler.guided_request import HELD_OUT, GuidedRequest, checking_evals, held_out
from editspec import Guide, Guided

EFFECT = effect_of(Guide(id="a", method="negative-prompt", away_from=(Guided(concept="crack"),)))
DDIM = {"_class_name": "DDIMScheduler"}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(0, 2**31))
def test_what_is_held_out_spreads_over_the_prompts_and_has_other_noise(shares: list[int], seed: int) -> None:
    prompts = tuple(f"a house {number}" for number in range(len(shares)))
    learned = GuidedRequest(BankRequest(prompts, tuple(shares), seed), EFFECT, (7.5, 3.0))
    held = held_out(learned)
    assert held.plain.total == min(HELD_OUT, sum(shares))
    assert held.plain.seed != seed
    assert set(held.prompts) <= set(prompts)
    assert len(held.prompts) == min(held.plain.total, len(prompts))
    assert held.prompts[0] == prompts[0]
    if len(prompts) > HELD_OUT:  # the last of the list are among them too, nearly
        assert prompts.index(held.prompts[-1]) >= len(prompts) - 1 - len(prompts) // HELD_OUT
    assert max(held.plain.trajectories) - min(held.plain.trajectories) <= 1
    assert (held.effect, held.scales, held.plain.steps) == (EFFECT, learned.scales, learned.plain.steps)


def test_checking_takes_sampling_and_both_halves_before_and_after() -> None:
    plain = BankRequest(("a house",), (50,), 3, steps=20, strata=10)
    learned = GuidedRequest(plain, EFFECT, (7.5,))
    assert checking_evals(learned, DDIM) == HELD_OUT * (20 * 3 + 10 * 4)
    few = replace(learned, plain=replace(plain, trajectories=(5,)))
    assert checking_evals(few, DDIM) == 5 * (20 * 3 + 10 * 4)
