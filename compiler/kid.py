"""Kernel distance of two sets of pictures over an evaluator's features (KID, Binkowski et al. 2018).

The squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, unbiased: two sets of one distribution
lie at 0 on average, as often below as above. What counts as near is therefore no multiple of that average but
of what chance alone gives, `chance`: the base against itself.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Features: TypeAlias = np.ndarray[Any, np.dtype[Any]]

DEGREE = 3


def kernel_distance(first: Features, second: Features) -> float:
    """KID of features (n, d) and (m, d): mean k within each, less twice between."""
    if min(len(first), len(second)) < 2:
        raise ValueError("a kernel distance needs two pictures of each set")
    both = _kernel(np.concatenate([first, second]))
    return _discrepancy(both, len(first))


def chance(base: Features, size: int, draws: int = 200, share: float = 0.95, seed: int = 0) -> float:
    """What KID stays under in `share` of cases where nothing changed: disjoint random sets of `base`.

    `base` (n, d) needs twice `size` pictures, the number in each of both sets.
    """
    if len(base) < 2 * size:
        raise ValueError(f"{len(base)} pictures are no two sets of {size}")
    kernel = _kernel(base)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = random.permutation(len(base))[: 2 * size]
        found.append(_discrepancy(kernel[np.ix_(drawn, drawn)], size))
    return float(np.quantile(found, share))


def _kernel(features: Features) -> Features:
    """k of every pair, float64."""
    wide = features.astype(np.float64)
    kernel: Features = (wide @ wide.T / wide.shape[1] + 1.0) ** DEGREE
    return kernel


def _discrepancy(kernel: Features, count: int) -> float:
    """The unbiased estimate, of which the first `count` rows are one set and all others the other."""
    within = []
    for part in (kernel[:count, :count], kernel[count:, count:]):
        pairs = len(part) * (len(part) - 1)  # none with itself
        within.append((part.sum() - np.trace(part)) / pairs)
    return float(sum(within) - 2.0 * kernel[:count, count:].mean())
