"""The statistics of acceptance gates: how many draws prove a rate, and how sure a measured one is.

Exact where a gate decides (binomial sums, one-sided bounds that never under-cover), approximate only for
display. Planning uses this module, so it needs nothing but the standard library; numpy enters late.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BISECTIONS = 80  # halves [0, 1] below the spacing of doubles
NEGLIGIBLE = 1e-17  # of a sum: below the spacing of doubles


@dataclass(frozen=True)
class Bounds:
    """An estimate with its interval, all in the unit of the estimate."""

    estimate: float
    lower: float
    upper: float


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), summed exactly over the tail that `k` lies in."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    if k > n * p:
        return max(0.0, 1.0 - _lower_tail(n - k - 1, n, 1.0 - p))
    return _lower_tail(k, n, p)


def _lower_tail(k: int, n: int, p: float) -> float:
    """P(X <= k) for k near or below the mean, from the largest term down to those that no longer count."""
    log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term = math.exp(log_term + k * math.log(p) + (n - k) * math.log1p(-p))
    total, odds = 0.0, (1.0 - p) / p
    for i in range(k, -1, -1):
        total += term
        term *= i / (n - i + 1) * odds
        if term < NEGLIGIBLE * total:
            break
    return min(1.0, total)


def upper_bound(k: int, n: int, confidence: float) -> float:
    """Clopper-Pearson one-sided upper bound of a rate after `k` of `n`: covers at least `confidence`."""
    _check_counts(k, n)
    if k == n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if binomial_cdf(k, n, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high  # the outer end: rounding never tightens the claim


def lower_bound(k: int, n: int, confidence: float) -> float:
    """Clopper-Pearson one-sided lower bound of a rate after `k` of `n`."""
    return 1.0 - upper_bound(n - k, n, confidence)


def plan_trials(max_rate: float, confidence: float = 0.95, allowed: int = 0) -> int:
    """The smallest n at which `allowed` failures still prove "rate <= max_rate" at `confidence`."""
    if not 0.0 < max_rate < 1.0 or not 0.0 < confidence < 1.0 or allowed < 0:
        raise ValueError("max_rate and confidence lie strictly between 0 and 1, allowed is not negative")

    def proves(n: int) -> bool:
        return binomial_cdf(allowed, n, max_rate) <= 1.0 - confidence

    high = allowed + 1
    while not proves(high):
        high *= 2
    return _smallest(proves, allowed + 1, high)


def allowed_failures(trials: int, max_rate: float, confidence: float = 0.95) -> int | None:
    """The most failures among `trials` that still prove "rate <= max_rate"; None where no result could."""
    if binomial_cdf(0, trials, max_rate) > 1.0 - confidence:
        return None
    return _smallest(lambda k: binomial_cdf(k + 1, trials, max_rate) > 1.0 - confidence, 0, trials)


def pass_probability(rate: float, trials: int, allowed: int) -> float:
    """Chance that a model whose true rate is `rate` passes "at most `allowed` failures in `trials`"."""
    return binomial_cdf(allowed, trials, rate)


def wilson(k: int, n: int, confidence: float = 0.95) -> Bounds:
    """Wilson's two-sided interval of a rate: for display, near its nominal coverage on average."""
    _check_counts(k, n)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = k / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Bounds(rate, max(0.0, centre - half), min(1.0, centre + half))


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p-value that `lost` and `gained` discordant pairs come from one rate (McNemar)."""
    discordant = lost + gained
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * binomial_cdf(min(lost, gained), discordant, 0.5))


def paired_loss(lost: int, gained: int, n: int, confidence: float = 0.95) -> Bounds:
    """Loss (lost - gained) / n of `n` paired draws with one-sided score bounds (Tango 1998).

    `lost`: pairs that only the first model got right, `gained`: only the second. Unlike a bootstrap it stays
    honest when no pair differs: the upper bound is then z^2 / (n + z^2), not 0. Where concepts share the
    draws equally it also bounds the mean loss over concepts (strata only shrink the variance).
    """
    if n < 1 or min(lost, gained) < 0 or lost + gained > n:
        raise ValueError("needs 0 <= lost, 0 <= gained, lost + gained <= n and n >= 1")
    upper = _score_upper(lost, gained, n, confidence)
    lower = -_score_upper(gained, lost, n, confidence)
    return Bounds((lost - gained) / n, lower, upper)


def _score_upper(lost: int, gained: int, n: int, confidence: float) -> float:
    """The smallest loss that Tango's score test refutes."""
    low, high = (lost - gained) / n, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _refutes(middle, lost, gained, n, confidence):
            high = middle
        else:
            low = middle
    return high


def _refutes(delta: float, lost: int, gained: int, n: int, confidence: float) -> bool:
    """Whether the pairs speak against a loss of `delta` or more: Tango's score test, one-sided."""
    # maximum-likelihood rate of gained pairs under the loss delta: root of Tango's quadratic
    b = -lost - gained + (2 * n - lost + gained) * delta
    root = math.sqrt(max(0.0, b * b + 8 * n * gained * delta * (1 - delta)))
    gained_rate = max(0.0, (root - b) / (4 * n))
    variance = max(0.0, 2 * gained_rate + delta * (1 - delta))
    distance = n * delta - (lost - gained)
    return distance >= NormalDist().inv_cdf(confidence) * math.sqrt(n * variance)


def plan_pairs(max_loss: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """Paired draws with which an edit that does no harm passes "loss <= max_loss" with chance `power`.

    Supposes that a third of `max_loss` of the pairs differ by chance, as often one way as the other.
    """
    n = least_pairs(max_loss, confidence)
    while _harmless_passes(n, max_loss, confidence) < power:
        n += max(1, n // 50)
    return n


def _harmless_passes(n: int, max_loss: float, confidence: float) -> float:
    """The chance meant in `plan_pairs`, summed over how many pairs differ and which way."""
    chance = 0.0
    for differing in range(n + 1):
        below = binomial_cdf(differing - 1, n, max_loss / 3)
        if below > 1 - 1e-6:
            break
        share = binomial_cdf(differing, n, max_loss / 3) - below
        chance += share * math.fsum(
            math.comb(differing, lost) * 0.5**differing
            for lost in range(differing + 1)
            if _refutes(max_loss, lost, differing - lost, n, confidence)
        )
    return chance


def least_pairs(max_loss: float, confidence: float = 0.95) -> int:
    """The fewest paired draws that can prove "loss <= max_loss": when not one pair differs."""
    if not 0.0 < max_loss < 1.0:
        raise ValueError("max_loss lies strictly between 0 and 1")
    z = NormalDist().inv_cdf(confidence)
    n = max(1, math.floor(z * z * (1 - max_loss) / max_loss) - 1)
    while not _refutes(max_loss, 0, 0, n, confidence):
        n += 1
    return n


def corrected_rate(observed: float, false_negative: float, false_positive: float) -> float | None:
    """The true rate behind an observed one, within [0, 1] (Rogan and Gladen 1978); None if undefined."""
    spread = 1.0 - false_negative - false_positive
    if spread <= 0.0:
        return None
    return min(1.0, max(0.0, (observed - false_positive) / spread))


def bootstrap_ratio(
    numerator: np.ndarray[Any, Any],
    denominator: np.ndarray[Any, Any],
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Bounds:
    """mean(numerator) / mean(denominator) with one-sided BCa bounds (Efron 1987), resampled by cluster.

    Both (n,), measured on the same draws; `clusters` (n,) names what was drawn together: the prompt.
    With one cluster the draws themselves are resampled. Deterministic in `seed`.
    """
    import numpy as np

    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([names[name] for name in clusters]) if len(names) > 1 else np.arange(len(clusters))
    size = int(index.max()) + 1
    above = np.bincount(index, weights=numerator, minlength=size)
    below = np.bincount(index, weights=denominator, minlength=size)
    estimate = float(above.sum() / below.sum())
    if size == 1:
        return Bounds(estimate, -math.inf, math.inf)
    rng = np.random.default_rng(seed)
    picks = rng.multinomial(size, np.full(size, 1.0 / size), size=resamples)
    totals = picks @ below
    values = np.sort(np.divide(picks @ above, totals, out=np.full(resamples, np.inf), where=totals > 0))
    leave_below = below.sum() - below
    if np.ptp(values) == 0.0 or (leave_below <= 0).any():
        return Bounds(estimate, float(values[0]), float(values[-1]))
    jackknife = (above.sum() - above) / leave_below
    spread = jackknife.mean() - jackknife
    squares = float((spread**2).sum()) ** 1.5
    acceleration = float((spread**3).sum()) / (6 * squares) if squares > 0 else 0.0
    normal = NormalDist()
    share = float((values < estimate).mean() + (values == estimate).mean() / 2)
    bias = normal.inv_cdf(min(max(share, 1 / resamples), 1 - 1 / resamples))

    def at(z: float) -> float:
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        return float(np.quantile(values, normal.cdf(shifted)))

    z = normal.inv_cdf(confidence)
    return Bounds(estimate, at(-z), at(z))


def _smallest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest integer in [low, high] from which on `holds` is true (monotone, true at `high`)."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _check_counts(k: int, n: int) -> None:
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"needs 0 <= k <= n and n >= 1, not {k} of {n}")
