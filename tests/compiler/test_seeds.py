from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.seeds import derive, epoch_batch, gaussian, generator, reproducible

names = st.lists(st.one_of(st.text(max_size=4), st.integers(0, 9)), max_size=3)


@given(st.integers(0, 2**40), names, names)
def test_differently_named_draws_have_different_seeds(seed: int, first: list[str], second: list[str]) -> None:
    same = first == second and [type(name) for name in first] == [type(name) for name in second]
    assert (derive(seed, *first) == derive(seed, *second)) is same


def test_a_named_seed_never_changes_between_versions() -> None:
    assert derive(7, "bank", "a star", 3) == 393930134094134096


def test_a_named_draw_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    gaussian((3, 2), 1, "noise")
    generator(1, "other")
    epoch_batch(5, 3, 2, 1, "batch")
    assert torch.equal(before, torch.get_rng_state())


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 6))
def test_batches_pass_over_every_example_once_an_epoch(count: int, batch: int, step: int) -> None:
    drawn = torch.cat([epoch_batch(count, batch, number, 5, "x") for number in range(step + 1)])
    assert len(drawn) == batch * (step + 1)
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count].tolist()) == list(range(count))


def test_a_batch_depends_on_its_step_alone() -> None:
    first = [epoch_batch(7, 4, step, 5, "x") for step in range(5)]
    assert torch.equal(epoch_batch(7, 4, 4, 5, "x"), first[4])
    assert not torch.equal(epoch_batch(7, 4, 4, 5, "y"), first[4])


def test_a_batch_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no batch"):
        epoch_batch(0, 4, 0, 5)


def test_reproducible_gives_the_former_settings_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with reproducible():
        assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="no batch"), reproducible():
        epoch_batch(0, 1, 0, 5)
    assert not torch.are_deterministic_algorithms_enabled()
