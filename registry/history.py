"""The life of a build: candidate, released, withdrawn; every step is an event that binds those before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editspec.canonical import digest
from editspec.errors import InputError, listed

CANDIDATE, RELEASED, WITHDRAWN, DROPPED = "candidate", "released", "withdrawn", "dropped"
STATES = (CANDIDATE, RELEASED, WITHDRAWN, DROPPED)

#: What a build may become. Dropped is a withdrawn build whose bytes `gc` removed; nobody asks for it by name.
NEXT = {CANDIDATE: (RELEASED, WITHDRAWN), RELEASED: (WITHDRAWN,), WITHDRAWN: (DROPPED,), DROPPED: ()}


@dataclass(frozen=True)
class Event:
    """One step of one build. `number` counts from 1; `previous` is the digest of the step before, or ""."""

    build: str
    number: int
    state: str
    at: str  # when, as its writer's clock had it: ISO 8601, UTC; the order is that of the numbers
    by: str
    reason: str
    previous: str

    @property
    def digest(self) -> str:
        """sha256 (hex) over all of it, so also over everything that came before."""
        return digest(asdict(self))

    def as_dict(self) -> dict[str, Any]:
        """The event as JSON, with its digest."""
        return {**asdict(self), "digest": self.digest}


def following(history: Sequence[Event], build: str, state: str, *, at: str, by: str, reason: str) -> Event:
    """The next event of `build`. `InputError` for a step that its present state does not allow."""
    if not history:
        return Event(build, 1, state, at, by, reason, "")
    last = history[-1]
    if state not in NEXT[last.state]:
        why = f": {last.reason}" if last.reason else ""
        possible = [name for name in NEXT[last.state] if name != DROPPED]
        raise InputError(
            build[:12],
            f"is {last.state}{why}",
            f"it can become {listed(possible, 'or')}" if possible else "that is final; add another build",
        )
    if state == WITHDRAWN and not reason.strip():
        raise InputError(build[:12], "is withdrawn without a word", "say why with --reason")
    return Event(build, last.number + 1, state, at, by, reason, last.digest)


def noted(history: Sequence[Event], *, at: str, by: str, reason: str) -> Event:
    """An event that changes no state: what happened to the build otherwise stands in `reason`."""
    last = history[-1]
    return Event(last.build, last.number + 1, last.state, at, by, reason, last.digest)


def flaw(build: str, history: Iterable[tuple[Event, str]]) -> str | None:
    """What is wrong with a stored history of (event, stored digest) pairs; None where it is whole."""
    state, previous, number = "", "", 0
    for event, stored in history:
        number += 1
        if event.build != build or event.number != number:
            return f"step {number} is missing"
        if event.digest != stored or event.previous != previous:
            return f"step {number} ({event.state}) was changed after it was written"
        allowed = (state, *NEXT[state]) if state else (CANDIDATE,)
        if event.state not in allowed:
            return f"step {number} goes from {state or 'nothing'} to {event.state}"
        state, previous = event.state, stored
    return None if number else "has no history"
