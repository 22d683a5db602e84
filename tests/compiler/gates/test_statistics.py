from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compiler.gates import statistics

TABLE = {  # trials that certify "failure < rate" at 95 % when at most k failures are allowed
    0.05: {0: 59, 1: 93, 2: 124, 3: 153, 5: 208, 10: 336},
    0.02: {0: 149, 1: 236, 2: 313, 3: 386, 5: 523, 10: 845},
    0.01: {0: 299, 1: 473, 2: 628, 3: 773, 5: 1049, 10: 1693},
    0.005: {0: 598, 1: 947, 2: 1258, 3: 1549, 5: 2100, 10: 3389},
    0.001: {0: 2995, 1: 4742, 2: 6294, 3: 7752, 5: 10511, 10: 16959},
}
counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
confidences = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@pytest.mark.parametrize("rate", TABLE)
def test_planned_trials_equal_the_published_table(rate: float) -> None:
    assert {k: statistics.plan_trials(rate, 0.95, k) for k in TABLE[rate]} == TABLE[rate]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(30, 142, 0.152, 0.286), (16, 142, 0.071, 0.175), (25, 50, 0.366, 0.634)],
)
def test_wilson_gives_the_published_intervals(k: int, n: int, low: float, high: float) -> None:
    interval = statistics.wilson(k, n)
    assert interval.lower == pytest.approx(low, abs=6e-4)
    assert interval.upper == pytest.approx(high, abs=6e-4)


@given(counts, confidences)
def test_wilson_agrees_with_scipy(count: tuple[int, int], confidence: float) -> None:
    k, n = count
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    interval = statistics.wilson(k, n, confidence)
    assert (interval.lower, interval.upper) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("n", "percent"), [(142, 2.1), (50, 5.8), (931, 0.32), (4703, 0.06)])
def test_no_failure_in_n_still_allows_the_published_rate(n: int, percent: float) -> None:
    assert 100 * statistics.upper_bound(0, n, 0.95) == pytest.approx(percent, abs=0.05)


@given(counts, confidences)
def test_clopper_pearson_agrees_with_the_beta_quantile(count: tuple[int, int], confidence: float) -> None:
    k, n = count
    upper = 1.0 if k == n else stats.beta.ppf(confidence, k + 1, n - k)
    lower = 0.0 if k == 0 else stats.beta.ppf(1 - confidence, k, n - k + 1)
    assert statistics.upper_bound(k, n, confidence) == pytest.approx(upper, abs=1e-9)
    assert statistics.lower_bound(k, n, confidence) == pytest.approx(lower, abs=1e-9)


@given(counts, st.floats(0.001, 0.999))
def test_the_binomial_sum_agrees_with_scipy(count: tuple[int, int], p: float) -> None:
    k, n = count
    assert statistics.binomial_cdf(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), abs=1e-10)


@pytest.mark.parametrize(
    ("k", "n", "p"), [(49_500, 10**6, 0.05), (5000, 10_000, 0.5), (5, 10**6, 1e-5), (1, 3, 0.5)]
)
def test_the_binomial_sum_agrees_with_scipy_where_there_are_many_trials(k: int, n: int, p: float) -> None:
    assert statistics.binomial_cdf(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-8)


@settings(max_examples=40)
@given(st.integers(1, 60), st.floats(0.01, 0.99), confidences)
def test_the_upper_bound_covers_at_least_as_often_as_it_says(n: int, rate: float, confidence: float) -> None:
    covered = sum(
        stats.binom.pmf(k, n, rate) for k in range(n + 1) if statistics.upper_bound(k, n, confidence) >= rate
    )
    assert covered >= confidence - 1e-9


@given(counts, confidences)
def test_one_failure_more_never_lowers_the_bound(count: tuple[int, int], confidence: float) -> None:
    k, n = count
    if k < n:
        assert statistics.upper_bound(k, n, confidence) < statistics.upper_bound(k + 1, n, confidence) + 1e-12


@settings(max_examples=60)
@given(st.floats(0.005, 0.3), confidences, st.integers(0, 8))
def test_a_plan_is_the_smallest_that_its_bound_accepts(rate: float, confidence: float, allowed: int) -> None:
    n = statistics.plan_trials(rate, confidence, allowed)
    assert statistics.upper_bound(allowed, n, confidence) <= rate + 1e-12
    assert n == allowed + 1 or statistics.upper_bound(allowed, n - 1, confidence) > rate
    assert statistics.allowed_failures(n, rate, confidence) == allowed


def test_too_few_trials_can_prove_nothing() -> None:
    assert statistics.allowed_failures(58, 0.05) is None
    assert statistics.allowed_failures(59, 0.05) == 0
    assert statistics.allowed_failures(100, 0.05) == 1


def test_a_good_model_passes_the_large_plan_almost_surely() -> None:
    assert statistics.pass_probability(0.002, 1049, 5) == pytest.approx(0.98, abs=0.005)
    assert statistics.pass_probability(0.002, 299, 0) == pytest.approx(0.55, abs=0.005)


def test_mcnemar_agrees_with_the_exact_binomial_test() -> None:
    for lost, gained in [(0, 0), (5, 0), (3, 9), (20, 21)]:
        expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        assert statistics.mcnemar(lost, gained) == pytest.approx(expected)


@given(st.integers(1, 2000), confidences)
def test_no_differing_pair_still_leaves_doubt(n: int, confidence: float) -> None:
    z = stats.norm.ppf(confidence)
    bounds = statistics.paired_loss(0, 0, n, confidence)
    assert bounds.upper == pytest.approx(z * z / (n + z * z), rel=1e-6)
    assert bounds.lower == pytest.approx(-bounds.upper)


def test_the_paired_bound_is_the_root_of_tangos_score_statistic() -> None:
    lost, gained, n = 9, 4, 120
    delta = statistics.paired_loss(lost, gained, n, 0.95).upper

    def log_likelihood(q: float) -> float:
        same = (n - lost - gained) * math.log(1 - 2 * q - delta)
        return lost * math.log(q + delta) + gained * math.log(q) + same

    grid = np.linspace(1e-6, (1 - delta) / 2 - 1e-6, 400_001)
    q = grid[np.argmax([log_likelihood(q) for q in grid[::400]]) * 400]
    statistic = (lost - gained - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))
    assert statistic == pytest.approx(-stats.norm.ppf(0.95), abs=0.02)


def outcomes(
    rng: np.random.Generator, n: int, lose: float, gain: float
) -> tuple[list[tuple[int, int]], np.ndarray[Any, Any]]:
    """(lost, gained) of 2000 simulated comparisons of n pairs, and how often each came up."""
    drawn = rng.multinomial(n, [lose, gain, 1 - lose - gain], size=2000)[:, :2]
    pairs, times = np.unique(drawn, axis=0, return_counts=True)
    return [(int(b), int(c)) for b, c in pairs], times


@pytest.mark.parametrize(("n", "lose", "gain"), [(104, 0.05, 0.02), (150, 0.03, 0.03), (60, 0.1, 0.02)])
def test_the_paired_bound_covers_close_to_what_it_says(n: int, lose: float, gain: float) -> None:
    rng = np.random.default_rng(5)
    pairs, times = outcomes(rng, n, lose, gain)
    covered = [statistics.paired_loss(b, c, n).upper >= lose - gain for b, c in pairs]
    assert np.average(covered, weights=times) > 0.93


@given(st.floats(0.005, 0.3), confidences)
def test_the_fewest_pairs_can_prove_the_loss_and_one_fewer_cannot(max_loss: float, confidence: float) -> None:
    n = statistics.least_pairs(max_loss, confidence)
    assert statistics.paired_loss(0, 0, n, confidence).upper <= max_loss
    assert n == 1 or statistics.paired_loss(0, 0, n - 1, confidence).upper > max_loss


def test_a_harmless_edit_passes_the_planned_pairs_as_often_as_planned() -> None:
    n = statistics.plan_pairs(0.03)
    rng = np.random.default_rng(1)
    pairs, times = outcomes(rng, n, 0.005, 0.005)
    passed = [statistics.paired_loss(b, c, n).upper <= 0.03 for b, c in pairs]
    assert np.average(passed, weights=times) > 0.77


def test_correction_undoes_a_known_detector_error() -> None:
    observed = 0.3 * (1 - 0.1) + 0.7 * 0.05
    assert statistics.corrected_rate(observed, 0.1, 0.05) == pytest.approx(0.3)
    assert statistics.corrected_rate(0.01, 0.1, 0.05) == 0.0
    assert statistics.corrected_rate(0.5, 0.5, 0.5) is None


def test_the_bootstrap_of_a_ratio_covers_and_repeats() -> None:
    rng = np.random.default_rng(2)
    covered = []
    for trial in range(200):
        below = rng.uniform(0.5, 1.5, 60)
        above = 0.4 * below + rng.normal(0, 0.1, 60)
        names = [str(i) for i in range(60)]
        bounds = statistics.bootstrap_ratio(above, below, names, resamples=1000, seed=trial)
        covered.append(bounds.upper >= 0.4)
    assert 0.9 < np.mean(covered) < 0.99
    twice = [statistics.bootstrap_ratio(above, below, names, resamples=500, seed=3) for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0].lower < twice[0].estimate < twice[0].upper


def test_the_bootstrap_resamples_prompts_and_not_images() -> None:
    rng = np.random.default_rng(4)
    prompt_effect = np.repeat(rng.normal(1, 0.4, 8), 20)
    names = [f"prompt {i // 20}" for i in range(160)]
    by_prompt = statistics.bootstrap_ratio(prompt_effect, np.ones(160), names, resamples=1000)
    by_image = statistics.bootstrap_ratio(
        prompt_effect, np.ones(160), [str(i) for i in range(160)], resamples=1000
    )
    assert by_prompt.upper - by_prompt.lower > 2 * (by_image.upper - by_image.lower)


def test_planning_statistics_loads_neither_numpy_nor_scipy() -> None:
    program = (
        "import sys; from compiler.gates import statistics as s; s.plan_trials(.05); s.plan_pairs(.03);"
        "assert not {'numpy', 'scipy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
