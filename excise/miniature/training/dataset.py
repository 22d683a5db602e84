"""Renders the world once into a work folder: its pictures as one memory-mapped array."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from excise.miniature.architecture import IMAGE_SIZE
from excise.miniature.draw import draw
from excise.miniature.scene import sample_scene

WORLD_SEED = 20261
CHUNK = 1000


def _render_chunk(seed: int, start: int, stop: int) -> np.ndarray:
    return np.stack([np.asarray(draw(sample_scene(seed, i), seed, i)) for i in range(start, stop)])


def render(work: Path, count: int, seed: int = WORLD_SEED, workers: int = 2) -> np.ndarray:
    """Pictures 0..count-1 of the world as uint8 (count, 32, 32, 3), drawn now or found in `work`."""
    path = work / f"world-{seed}-{count}.npy"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial.npy")
        shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
        pixels = np.lib.format.open_memmap(partial_path, mode="w+", dtype=np.uint8, shape=shape)
        starts = range(0, count, CHUNK)
        stops = [min(count, s + CHUNK) for s in starts]
        with ProcessPoolExecutor(workers) as pool:
            for start, chunk in zip(
                starts, pool.map(partial(_render_chunk, seed), starts, stops), strict=True
            ):
                pixels[start : start + len(chunk)] = chunk
        pixels.flush()
        partial_path.rename(path)
    stored: np.ndarray = np.load(path, mmap_mode="r")
    return stored
