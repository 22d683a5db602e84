from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editspec.scanner import DEEPEST, scan

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_it_reads_what_json_reads(value: Any, indent: int | str | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    found = scan(text)
    assert found.complete
    assert not found.flaws
    assert found.value == json.loads(text)


@given(values)
def test_every_place_holds_the_value_it_is_the_place_of(value: Any) -> None:
    text = json.dumps(value, indent=2)
    found = scan(text)
    for pointer, span in found.values.items():
        held = found.value
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            held = held[int(step)] if isinstance(held, list) else held[step]
        assert json.loads(text[span.start : span.stop]) == held
    for pointer, span in found.keys.items():
        key = pointer.rpartition("/")[2].replace("~1", "/").replace("~0", "~")
        assert json.loads(text[span.start : span.stop]) == key


@given(st.text(alphabet="{}[],:\"\\u0123456789abcdefDtrueflsn -+.eE/\n\t'#NaInity", max_size=60))
def test_any_text_is_either_json_or_flawed_and_never_a_crash(text: str) -> None:
    found = scan(text)
    try:
        expected = json.loads(text, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        assert found.flaws
    else:
        strict = not found.flaws  # duplicate keys, numbers beyond a double and half surrogates are ours alone
        assert not strict or found.value == expected


@pytest.mark.parametrize("opener", ["[", '{"a":'])
def test_a_deep_nest_is_refused_before_the_stack_is(opener: str) -> None:
    found = scan(opener * 100_000)
    assert not found.complete
    assert str(DEEPEST) in found.flaws[0].message


def test_many_values_take_time_in_proportion() -> None:
    text = json.dumps([{"concept": f"word{i}"} for i in range(20_000)])
    assert len(scan(text).value) == 20_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("{} {}", "after the end"),
        ("[1 2]", "comma is missing"),
        ('{"a" 1}', "expected ':'"),
        ("{a: 1}", "double quotes"),
        ("[hello]", "no JSON value"),
        ("[None]", "no JSON value"),
        ("[-]", "no JSON number"),
        ("[+1]", "expected a value"),
        ("[1_000]", "no JSON number"),
        ("[.5]", "expected a value"),
        ("[-Infinity]", "no JSON number"),
        ('["\\x"]', "no escape"),
        ('["\\u12"]', "four hex digits"),
        ('["\t"]', "control character"),
        ("/* note */ {}", "no comments"),
        ("# note\n{}", "no comments"),
        ("[1,,2]", "expected a value"),
        ("[1" + "0" * 500 + "]", "400 characters"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    found = scan(text)
    assert says in found.flaws[0].message
