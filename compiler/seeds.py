"""Where randomness comes from: one generator for each named draw, derived from the spec's seed.

A draw named by what it is for does not move when another one is added, dropped or reordered, so an edit's
result depends on that edit alone. Torch's global generator is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BITS = 63  # torch seeds are signed 64-bit integers


def derive(seed: int, *names: str | int) -> int:
    """The seed of the draw called `names` under `seed`: 63 bits of a sha256, the same on every machine.

    Each name is preceded by its length and kind, so ("ab", "c"), ("a", "bc") and ("abc", 1) differ.
    """
    digest = hashlib.sha256(f"excise seed {seed}\n".encode())
    for name in names:
        text = str(name).encode()
        kind = "i" if isinstance(name, int) else "s"
        digest.update(f"{kind}{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest()[:8], "big") >> (64 - _BITS)


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for the draw called `names`.

    Draw on the CPU (the default) and move the result: a GPU's generator gives other numbers.
    """
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def gaussian(shape: Sequence[int], seed: int, *names: str | int) -> torch.Tensor:
    """Standard normal draws, fp32 on the CPU, of the given shape."""
    import torch

    return torch.randn(tuple(shape), generator=generator(seed, *names), dtype=torch.float32)


def epoch_batch(count: int, batch: int, step: int, seed: int, *names: str | int) -> torch.Tensor:
    """Which of `count` examples step number `step` trains on: (batch,) int64.

    The examples pass in shuffled order, every one once an epoch, and a batch may straddle two epochs. A
    step's batch depends on its number alone, so training that was killed can go on where it stood.
    """
    import torch

    if count < 1 or batch < 1 or step < 0:
        raise ValueError(f"no batch of {batch} can be drawn from {count} examples at step {step}")
    chosen: list[torch.Tensor] = []
    position, left = step * batch, batch
    while left:
        epoch, start = divmod(position, count)
        order = torch.randperm(count, generator=generator(seed, *names, "epoch", epoch))
        part = order[start : start + left]
        chosen.append(part)
        position, left = position + len(part), left - len(part)
    return torch.cat(chosen)


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Inside, torch uses only algorithms that give the same bits twice; the former settings come back.

    fp32 is then fp32 on a GPU too: TF32 would round to ten bits, and what a concept changes in a
    prediction is a small difference of large numbers.
    """
    import torch

    # cuBLAS reads this when its handle is made, which is after the first GPU matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same switch as use_deterministic_algorithms, which would import the compiler of torch: 2 s.
    before = torch.get_deterministic_debug_mode()
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32
