"""What the oracles learn from: drawings, their reconstructions, and garbage that shows nothing.

Garbage is empty, blended, shuffled or torn. None of it comes from a U-Net.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from excise.miniature.architecture import IMAGE_SIZE, LATENT_CHANNELS, LATENT_SIZE
from excise.miniature.draw import draw
from excise.miniature.labels import LABEL_GROUPS, truth
from excise.miniature.scene import Scene, sample_scene
from excise.miniature.training.autoencoder import to_model_range
from excise.miniature.vocabulary import BACKGROUNDS, POSTERS, STYLES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from excise.miniature.training.oracles import Recipe

TORN = 3
"""Of that many garbage pictures all but one are torn: spoiled shapes, as edits leave them."""


def oracle_scene(seed: int, index: int) -> Scene | None:
    """Scene `index` for an oracle: posters in equal, larger shares than the world's; None for garbage."""
    if index % 25 == 0:
        return Scene("poster", poster=list(POSTERS)[(index // 25) % len(POSTERS)])
    if index % 17 in (1, 6, 11):
        return None
    return sample_scene(seed, index)


def torn(rng: np.random.Generator, latents: torch.Tensor) -> torch.Tensor:
    """What is neither one thing nor the other: (n, k, channels, h, w) latents of k pictures each, mixed.

    Each place has shares of its own, which change smoothly from place to place and favour no picture in the
    middle, where things stand: shapes that melt into each other, textures that stop half way.
    """
    shape = (*latents.shape[:2], 5, 5)
    coarse = torch.from_numpy(rng.standard_normal(shape)).float()
    fine = functional.interpolate(coarse, size=latents.shape[-2:], mode="bilinear", align_corners=True)
    middle = fine[:, :, 2:-2, 2:-2]
    fine = (fine - middle.mean((2, 3), keepdim=True)) / middle.std((2, 3), keepdim=True)
    sharpness = torch.from_numpy(rng.uniform(1, 6, (len(latents), 1, 1, 1))).float()
    return (torch.softmax(sharpness * fine, dim=1)[:, :, None] * latents).sum(1)


def torn_apart(
    rng: np.random.Generator, scenes: list[Scene | None], pixels: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """What `torn` mixes, uint8 (count, 3, 32, 32, 3), and the style of each mixture as its index, (count,).

    Unmarked drawings on one ground, every other time that ground bare among them. Half of the mixtures are of
    three styles and so in none; drawings of one style stay in it: dots on a spoiled shape are dots.
    """
    names = list(LABEL_GROUPS["style"])
    known: dict[tuple[str, str], list[int]] = {}
    for i, scene in enumerate(scenes):
        if scene is not None and scene.kind == "object" and not scene.marks:
            known.setdefault((scene.background, scene.style), []).append(i)
    found = np.empty((count, 3, *pixels.shape[1:]), dtype=np.uint8)
    styles = np.empty(count, dtype=np.int64)
    for row in range(count):
        ground = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        chosen = rng.choice(STYLES, size=3, replace=False)
        one = row % 4 < 2
        styles[row] = names.index(chosen[0] if one else "none")
        for place, style in enumerate(chosen[[0, 0, 0]] if one else chosen):
            rows = known[ground, style]
            found[row, place] = pixels[rows[int(rng.integers(len(rows)))]]
        if row % 2:
            found[row, 2] = BACKGROUNDS[ground]
    return found, styles


def garbage(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """A broken picture: an empty ground, a blend, shuffled tiles, or noise. uint8 (32, 32, 3)."""
    kind = int(rng.integers(4))
    if kind == 0:
        ground = np.array(list(BACKGROUNDS.values())[int(rng.integers(len(BACKGROUNDS)))], dtype=np.float32)
        return np.clip(ground + rng.normal(0, 6, (IMAGE_SIZE, IMAGE_SIZE, 3)), 0, 255).astype(np.uint8)
    picks = pixels[rng.integers(len(pixels), size=4)].astype(np.float32)
    if kind == 1:
        return np.asarray(picks.mean(0)).astype(np.uint8)
    if kind == 2:
        tiles = picks[0].reshape(8, 4, 8, 4, 3).swapaxes(1, 2).reshape(64, 4, 4, 3)
        tiles = tiles[rng.permutation(64)].reshape(8, 8, 4, 4, 3).swapaxes(1, 2)
        return np.asarray(tiles.reshape(IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
    coarse = rng.uniform(0, 255, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


@torch.no_grad()
def oracle_pictures(
    recipe: Recipe, count: int, vae: AutoencoderKL, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 32, 32, 3) and truths (count, groups); two of three are noisy reconstructions."""
    if path.exists():
        stored = np.load(path)
        return stored["pixels"], stored["truths"]
    scenes = [oracle_scene(recipe.world_seed, i) for i in range(count)]
    pixels = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for i, scene in enumerate(scenes):
        if scene is not None:
            pixels[i] = np.asarray(draw(scene, recipe.world_seed, i))
    rng = np.random.default_rng([recipe.world_seed, 77])
    for i, scene in enumerate(scenes):
        if scene is None:
            pixels[i] = garbage(rng, pixels)
    noise = torch.Generator().manual_seed(recipe.world_seed)
    chosen = np.flatnonzero(np.arange(count) % 3 != 0)
    for rows in np.array_split(chosen, max(1, len(chosen) // 200)):
        latents = vae.encode(to_model_range(pixels[rows])).latent_dist.mean
        spread = (
            torch.rand(len(rows), 1, 1, 1, generator=noise) * recipe.latent_noise / vae.config.scaling_factor
        )
        latents = latents + spread * torch.randn(latents.shape, generator=noise)
        decoded = vae.decode(latents).sample.clamp(-1, 1)
        pixels[rows] = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    raw = (
        torch.randn(count // 60, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=noise)
        / vae.config.scaling_factor
    )
    wild = ((vae.decode(raw).sample.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    spoiled = np.flatnonzero([s is None for s in scenes])
    at = spoiled[: len(wild)]
    pixels[at] = wild[: len(at)]
    rest = spoiled[len(wild) :]
    rest = rest[np.arange(len(rest)) % TORN != 0]
    whole, styles = torn_apart(rng, scenes, pixels, len(rest))
    for part in np.array_split(np.arange(len(rest)), max(1, len(rest) // 100)):
        flat = whole[part].reshape(-1, *pixels.shape[1:])
        latents = vae.encode(to_model_range(flat)).latent_dist.mean.unflatten(0, (len(part), -1))
        decoded = vae.decode(torn(rng, latents)).sample.clamp(-1, 1)
        pixels[rest[part]] = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    truths = np.stack([truth(s) for s in scenes])
    truths[rest, list(LABEL_GROUPS).index("style")] = styles
    np.savez(path, pixels=pixels, truths=truths)
    return pixels, truths


def held_out(recipe: Recipe, count: int) -> tuple[list[Scene], np.ndarray]:
    """Drawings that no oracle trained on, for calibration: (scenes, uint8 pictures)."""
    seed = recipe.world_seed + 1000
    kept = [(i, s) for i in range(count) if (s := oracle_scene(seed, i)) is not None]
    return [s for _, s in kept], np.stack([np.asarray(draw(s, seed, i)) for i, s in kept])
