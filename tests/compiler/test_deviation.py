from __future__ import annotations

import numpy as np
import pytest

from compiler.deviation import deviation, ratios


def test_even_shares_deviate_by_nothing_and_one_group_alone_by_all() -> None:
    counts = np.array([[30, 30, 30], [90, 0, 0], [60, 30, 0]])
    assert ratios(counts) == pytest.approx([0.0, 1.0, 0.5])


def test_fair_draws_of_few_pictures_show_what_fair_draws_show() -> None:
    random = np.random.default_rng(1)
    counts = random.binomial(50, 0.5, 400)
    found = deviation([(k, 50 - k) for k in counts])
    assert found.fair == pytest.approx(0.113, abs=0.004)  # sqrt(2 / (pi 50))
    assert found.mean == pytest.approx(found.fair, abs=0.02)
    assert found.corrected < 0.05


@pytest.mark.parametrize("truth", [0.2, 0.6])
def test_the_corrected_ratio_is_the_one_behind_the_counts(truth: float) -> None:
    random = np.random.default_rng(2)
    counts = random.binomial(25, 0.5 + truth / 2, 2000)
    assert deviation([(k, 25 - k) for k in counts]).corrected == pytest.approx(truth, abs=0.02)


def test_the_interval_lies_around_the_mean_and_narrows_with_more_pictures() -> None:
    few, many = deviation([(8, 2), (7, 3)]), deviation([(800, 200), (700, 300)])
    assert few.low < few.mean < few.high
    assert many.low < many.mean < many.high
    assert many.high - many.low < (few.high - few.low) / 5
