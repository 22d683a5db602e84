from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editspec.errors import InputError
from registry.history import CANDIDATE, DROPPED, RELEASED, STATES, WITHDRAWN, Event, flaw, following

BUILD = "b" * 64


def lived(*states: str) -> list[Event]:
    history: list[Event] = []
    for number, state in enumerate(states):
        history.append(following(history, BUILD, state, at=f"2030-01-0{number + 1}", by="ann", reason="why"))
    return history


def stored(history: list[Event]) -> list[tuple[Event, str]]:
    return [(event, event.digest) for event in history]


def test_a_build_is_a_candidate_then_released_then_withdrawn() -> None:
    history = lived(CANDIDATE, RELEASED, WITHDRAWN, DROPPED)
    assert flaw(BUILD, stored(history)) is None
    assert [event.number for event in history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("states", "step", "says"),
    [
        ((CANDIDATE, RELEASED), RELEASED, "is released"),
        ((CANDIDATE, RELEASED), CANDIDATE, "it can become withdrawn"),
        ((CANDIDATE, WITHDRAWN), RELEASED, "(?s)is withdrawn: why.*that is final"),
        ((CANDIDATE,), DROPPED, "it can become released or withdrawn"),
    ],
)
def test_other_steps_are_refused_with_what_is_possible(states: tuple[str, ...], step: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        following(lived(*states), BUILD, step, at="", by="", reason="x")


def test_withdrawing_takes_a_reason() -> None:
    with pytest.raises(InputError, match="say why"):
        following(lived(CANDIDATE), BUILD, WITHDRAWN, at="", by="", reason=" ")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    place=st.integers(0, 2),
    field=st.sampled_from(["build", "number", "state", "at", "by", "reason", "previous"]),
    mend=st.booleans(),
)
def test_whatever_is_changed_afterwards_is_found(place: int, field: str, mend: bool) -> None:
    """Even with the event's own digest mended, unless it is the last: that one nothing binds yet."""
    history = stored(lived(CANDIDATE, RELEASED, WITHDRAWN))
    event, digest = history[place]
    other: Any = {"number": 9, "state": next(s for s in STATES if s != event.state)}.get(field, "other")
    changed = replace(event, **{field: other})
    history[place] = (changed, changed.digest if mend else digest)
    if mend and place == 2 and field in ("at", "by", "reason"):
        return
    assert flaw(BUILD, history) is not None


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_step_is_found(lost: int) -> None:
    history = stored(lived(CANDIDATE, RELEASED, WITHDRAWN))
    del history[lost]
    assert "step" in str(flaw(BUILD, history))
    assert flaw(BUILD, []) == "has no history"
