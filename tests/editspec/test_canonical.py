from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editspec.canonical import LARGEST_INTEGER, canonical, digest

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST_INTEGER, LARGEST_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("number", "written"),
    [  # RFC 8785, appendix B
        (0.0, "0"),
        (-0.0, "0"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (9007199254740992.0, "9007199254740992"),
        (295147905179352830000.0, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"),
        (1e23, "1e+23"),
        (999999999999999700000.0, "999999999999999700000"),
        (1e21, "1e+21"),
        (9.999999999999997e-7, "9.999999999999997e-7"),
        (0.000001, "0.000001"),
        (333333333.3333332, "333333333.3333332"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"),
    ],
)
def test_numbers_are_written_as_the_standard_writes_them(number: float, written: str) -> None:
    assert canonical(number).decode() == written


def test_strings_and_the_order_of_keys_follow_the_standard() -> None:
    # RFC 8785 3.2.3: sorted by UTF-16 code units, so the smiley comes before the Hebrew presentation form
    document = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7}
    assert list(json.loads(canonical(document)).values()) == [2, 4, 6, 7, 1, 5, 3]
    assert canonical('\u20ac$\x0f\nA\'B"\\\\"/') == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()


@given(values)
def test_the_canonical_form_reads_back_as_the_same_value(value: Any) -> None:
    # a double beyond 2^53 is written as a whole number, so both sides are read as doubles
    assert json.loads(canonical(value), parse_int=float) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_number_is_lost(value: float) -> None:
    assert float(canonical(value)) == value


@given(st.dictionaries(st.text(), st.integers(0, 9)))
def test_the_order_of_keys_does_not_change_the_digest(document: dict[str, int]) -> None:
    assert digest(document) == digest(dict(reversed(document.items())))


def test_a_whole_number_is_the_same_with_and_without_a_point() -> None:
    assert canonical({"scale": 7.0}) == canonical({"scale": 7}) == b'{"scale":7}'


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, object()])
def test_what_json_cannot_hold_exactly_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON form|2\^53"):
        canonical(value)
