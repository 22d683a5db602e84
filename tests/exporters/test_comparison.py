from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from exporters.comparison import changes, gate_changes

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab~/", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def _put(value: Any, at: str, change: dict[str, Any], side: str) -> Any:
    """`value` with what `change` says of one side put in at a pointer."""
    if not at:
        return change[side]
    key, _, rest = at[1:].partition("/")
    name = key.replace("~1", "/").replace("~0", "~")
    found = dict(value)
    if rest or side in change:
        found[name] = _put(found.get(name), f"/{rest}" if _ else "", change, side)
    else:
        del found[name]
    return found


@given(values, values)
def test_changes_lead_from_one_value_to_the_other(first: Any, second: Any) -> None:
    found = list(changes(first, second))
    for change in found:
        first = _put(first, change["at"], change, "second")
    assert first == second
    assert not list(changes(second, second))


def test_edits_go_by_their_ids_wherever_they_stand() -> None:
    star, heart = {"id": "no-star", "steps": 100}, {"id": "no-heart", "steps": 60}
    more = {**star, "steps": 200}
    assert list(changes({"edits": [star, heart]}, {"edits": [heart, more]})) == [
        {"at": "/edits/no-star/steps", "first": 100, "second": 200}
    ]
    assert list(changes({"edits": [star, heart]}, {"edits": [heart]})) == [
        {"at": "/edits/no-star", "first": star}
    ]


def test_true_is_not_one() -> None:
    assert list(changes({"a": 1}, {"a": True})) == [{"at": "/a", "first": 1, "second": True}]


def _gate(name: str, observed: float, *, passed: bool = True) -> dict[str, Any]:
    told = {"gate": "erased", "unit": "share", "bound": 0.05, "limit": 0.1, "n": 60}
    return {"id": name, "passed": passed, "observed": observed, "reason": "", **told}


def test_gates_that_found_the_same_are_left_out_and_others_stand_beside_each_other() -> None:
    first = {"gates": [_gate("a", 0.0), _gate("b", 0.1), _gate("c", 0.2)]}
    second = {"gates": [_gate("a", 0.0), _gate("b", 0.3, passed=False), _gate("d", 0.2)]}
    found = gate_changes(first, second)
    assert [one["id"] for one in found] == ["b", "c", "d"]
    assert (found[0]["first"]["passed"], found[0]["second"]["passed"]) == (True, False)
    assert "second" not in found[1]
    assert "first" not in found[2]
