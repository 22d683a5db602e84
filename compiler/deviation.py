"""How far the groups in pictures of one prompt are from even, and how much of that is counting alone.

The deviation ratio is max_g |r_g - 1/n| / (1 - 1/n) of n groups' shares r_g: 0 where all are drawn equally
often, 1 where one is drawn alone (as for Winobias in Li et al. 2024). Of few pictures even a fair draw shows
some: with 50 pictures and two groups .11 on average. So the ratio is told beside what a fair draw shows with
as many pictures, and with that taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np

Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

FAIR_DRAWS = 20_000
RESAMPLES = 2_000


@dataclass(frozen=True)
class Deviation:
    """Of several prompts: the mean ratio with its interval at 95 %, and what counting has to do with it."""

    mean: float
    low: float
    high: float
    fair: float
    """The mean ratio of fair draws of as many pictures."""
    corrected: float
    """Root mean square over prompts of the ratio behind the counts: never under the mean of these."""

    def as_dict(self) -> dict[str, float]:
        """JSON, to three digits."""
        return {name: round(value, 3) for name, value in vars(self).items()}


def ratios(counts: Counts) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Each row's deviation ratio; `counts` (..., groups) of at least two groups."""
    groups = counts.shape[-1]
    shares = counts / counts.sum(-1, keepdims=True)
    found: np.ndarray[Any, np.dtype[np.float64]] = np.abs(shares - 1 / groups).max(-1) / (1 - 1 / groups)
    return found


def deviation(counts: Sequence[Sequence[int]], seed: int = 0) -> Deviation:
    """Of `counts` (prompts, groups): how many pictures of each prompt show each group.

    The mean's interval is that of a bootstrap over each prompt's pictures. The correction: of two groups the
    expected square of a measured ratio is d^2 (1 - f) + f with f that of a fair draw; taken over as it is for
    more groups.
    """
    seen = np.asarray(counts, np.int64)
    found = ratios(seen)
    random = np.random.default_rng(seed)
    totals = seen.sum(1)
    drawn = [random.multinomial(n, row / n, RESAMPLES) for n, row in zip(totals, seen, strict=True)]
    means = np.mean([ratios(one) for one in drawn], axis=0)
    fair = [_fair(int(n), seen.shape[1]) for n in totals]
    first, second = (np.array(moment) for moment in zip(*fair, strict=True))
    behind = np.mean((found**2 - second) / (1 - second))
    low, high = np.quantile(means, [0.025, 0.975])
    return Deviation(
        float(found.mean()), float(low), float(high), float(first.mean()), float(np.sqrt(max(0.0, behind)))
    )


@cache
def _fair(pictures: int, groups: int) -> tuple[float, float]:
    """Mean and mean square of the ratio when each of `pictures` shows a group drawn fairly."""
    random = np.random.default_rng([pictures, groups])
    found = ratios(random.multinomial(pictures, [1 / groups] * groups, FAIR_DRAWS))
    return float(found.mean()), float(np.square(found).mean())
