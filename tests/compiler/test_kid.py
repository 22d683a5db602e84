from __future__ import annotations

import numpy as np
import pytest

from compiler.kid import chance, kernel_distance

RANDOM = np.random.default_rng(3)
SAME = RANDOM.normal(size=(400, 6))
MOVED = RANDOM.normal(size=(100, 6)) + 0.7


def test_it_is_the_published_estimator_written_out() -> None:
    first, second = SAME[:4], MOVED[:3]

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 6 + 1) ** 3)

    expected = (
        sum(k(x, y) for i, x in enumerate(first) for j, y in enumerate(first) if i != j) / 12
        + sum(k(x, y) for i, x in enumerate(second) for j, y in enumerate(second) if i != j) / 6
        - 2 * sum(k(x, y) for x in first for y in second) / 12
    )
    assert kernel_distance(first, second) == pytest.approx(expected)


def test_two_sets_of_one_distribution_lie_around_zero_whatever_their_size() -> None:
    for size in (10, 50):
        found = [
            kernel_distance(RANDOM.normal(size=(size, 6)), RANDOM.normal(size=(size, 6))) for _ in range(300)
        ]
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(300)


def test_chance_is_passed_by_what_moved_and_not_by_most_of_what_did_not() -> None:
    bar = chance(SAME, 100)
    assert kernel_distance(SAME[:100], MOVED) > 2 * bar > 0
    stayed = [kernel_distance(RANDOM.normal(size=(100, 6)), SAME[:100]) for _ in range(40)]
    assert np.mean(np.array(stayed) > 2 * bar) < 0.2


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="no two sets"):
        chance(SAME[:10], 6)
    with pytest.raises(ValueError, match="two pictures"):
        kernel_distance(SAME[:1], SAME)
