from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_records import gate

from exporters.charts import HEIGHT, TALLEST, WIDTH, columns, curve, gate_bar, pair_bar

SHARES = st.floats(0, 1)


def shapes(svg: str, kind: str) -> list[dict[str, str]]:
    """Attributes of the shapes whose class begins with `kind`."""
    return [one.attrib for one in ET.fromstring(svg).iter() if one.get("class", "").split(" ")[0] == kind]


@given(observed=SHARES, bound=SHARES, limit=SHARES)
def test_the_dot_the_bound_and_the_limit_lie_where_their_shares_are(
    observed: float, bound: float, limit: float
) -> None:
    bar = gate_bar(gate(observed=observed, bound=bound, limit=limit))
    (dot,), (line,), (mark,) = (shapes(bar, kind) for kind in ("observed", "interval", "limit"))
    assert float(dot["cx"]) == pytest.approx(WIDTH * observed, abs=0.06)
    assert float(line["x2"]) == pytest.approx(WIDTH * bound, abs=0.06)
    assert float(mark["x1"]) == pytest.approx(WIDTH * limit, abs=0.06)


def test_the_base_has_a_ring_only_where_its_rate_is_the_same_kind_of_share() -> None:
    assert shapes(gate_bar(gate()), "base")
    assert not shapes(gate_bar(gate(gate="preserved")), "base")


def test_a_gate_that_measured_nothing_has_no_dot() -> None:
    bar = gate_bar(gate(observed=None, bound=None))
    assert not shapes(bar, "observed")
    assert not shapes(bar, "interval")


def test_a_failed_gate_is_told_apart() -> None:
    (dot,) = shapes(gate_bar(gate(passed=False)), "observed")
    assert dot["class"] == "observed failed"


@pytest.mark.parametrize("share", [-0.3, 1.7])
def test_what_lies_outside_is_drawn_at_the_end(share: float) -> None:
    (dot,) = shapes(gate_bar(gate(observed=share)), "observed")
    assert 0 <= float(dot["cx"]) <= WIDTH


@given(st.lists(st.floats(0, 5), max_size=12))
def test_columns_are_as_high_as_their_ratios_up_to_where_they_are_cut(ratios: list[float]) -> None:
    (level,) = shapes(columns(ratios), "limit")
    one = 2 * HEIGHT - float(level["y1"])
    heights = [float(column["height"]) for column in shapes(columns(ratios), "edited")]
    assert heights == pytest.approx([one * min(TALLEST, ratio) for ratio in ratios], abs=0.1)


def test_two_shares_are_two_bars() -> None:
    (base,), (edited,) = (shapes(pair_bar(0.5, 0.25), kind) for kind in ("base", "edited"))
    assert float(base["width"]) == 2 * float(edited["width"])


def test_a_curve_of_one_point_can_be_drawn() -> None:
    points: list[dict[str, Any]] = [{"steps": 0, "rate": 0.5}]
    assert len(shapes(curve(points, 1.0), "observed")) == 1
