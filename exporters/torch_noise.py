"""The normal draws of torch's CPU generator without torch, so that a seed means one picture everywhere.

torch seeds a 32-bit Mersenne Twister, makes 24-bit uniform numbers, and turns each block of 16 into normal
ones by Box and Muller's transform (`normal_fill` in ATen's DistributionTemplates.h). Equal up to the last
bits: logarithm and cosine are other implementations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float32]]

BLOCK = 16
_MANTISSA = 24


def standard_normal(shape: Sequence[int], seed: int) -> Array:
    """What `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` gives, fp32.

    At least 16 numbers: for fewer torch uses another algorithm. Raises `ValueError` there.
    """
    import numpy as np

    count = math.prod(shape)
    if count < BLOCK:
        raise ValueError(f"torch draws {count} numbers in another way than {BLOCK} or more")
    twister = np.random.RandomState(seed & 0xFFFFFFFF)
    uniform = _uniform(twister, count)
    whole = count - count % BLOCK
    normal = np.empty(count, np.float32)
    normal[:whole] = _box_muller(uniform[:whole])
    if whole < count:  # the last 16 are drawn once more
        normal[-BLOCK:] = _box_muller(_uniform(twister, BLOCK))
    return normal.reshape(tuple(shape))


def _uniform(twister: np.random.RandomState, count: int) -> Array:
    import numpy as np

    words = twister.randint(0, 2**32, size=count, dtype=np.uint32)
    kept = words & np.uint32(2**_MANTISSA - 1)
    numbers: Array = kept.astype(np.float32) * np.float32(2.0**-_MANTISSA)
    return numbers


def _box_muller(uniform: Array) -> Array:
    """Blocks of 16: the first eight become radii, the last eight angles; cosines come before sines."""
    import numpy as np

    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - blocks[:, 0]))
    angle = np.float32(2 * math.pi) * blocks[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    normal: Array = pairs.astype(np.float32).reshape(-1)
    return normal
