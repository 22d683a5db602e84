"""Trains the miniature's autoencoder and encodes the world with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch

from excise.miniature.architecture import LATENT_CHANNELS, LATENT_SIZE, build_autoencoder
from excise.miniature.assets import MODEL
from excise.miniature.scene import sample_scene
from excise.miniature.training.state import descend, learning_rate, load_state, save_state

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KL_WEIGHT = 1e-5
EDGE_WEIGHT = 0.5
"""Of errors in differences between neighbouring pixels: L1 and L2 alone leave dots and small marks pale."""
LATENT_NOISE = 0.05
"""Standard deviation, at most, in units of the scaled latents: what a sampled latent is off by."""


def to_model_range(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(
    pixels: np.ndarray,
    folder: Path,
    steps: int = 2400,
    batch: int = 16,
    peak: float = 2e-3,
    seed: int = 1,
    device: str = "cpu",
) -> AutoencoderKL:
    """Train on L1 + L2 and a small KL term, save to `folder`; a killed run goes on where it stopped."""
    torch.manual_seed(seed)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    state = folder.with_suffix(".state.safetensors")
    first = load_state(state, {"model": model}, optimizer)
    started = time.monotonic()
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        x = to_model_range(pixels[np.sort(rng.integers(len(pixels), size=batch))]).to(
            device, memory_format=torch.channels_last
        )
        noise = (
            torch.from_numpy(rng.standard_normal((batch, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)))
            .float()
            .to(device)
        )
        posterior = model.encode(x).latent_dist
        error = model.decode(posterior.mean + posterior.std * noise).sample - x
        loss = error.abs().mean() + error.square().mean() + KL_WEIGHT * posterior.kl().mean()
        descend(loss, optimizer, learning_rate(step, steps, peak), most=1.0)
        if step % 100 == 0 or step == steps - 1:
            click.echo(
                f"autoencoder step {step} l1 {error.abs().mean():.4f} mse {error.square().mean():.5f}"
                f" {time.monotonic() - started:.0f}s"
            )
        if step % 400 == 399:
            save_state(state, {"model": model}, optimizer, step + 1)
    with torch.no_grad():
        sample = torch.cat(
            [
                model.encode(to_model_range(pixels[i : i + 100]).to(device)).latent_dist.mean
                for i in range(0, 1000, 100)
            ]
        )
    model.register_to_config(scaling_factor=round(1.0 / float(sample.std()), 5))
    model.eval().half().save_pretrained(folder)
    return model.float()


def train_decoder(
    pixels: np.ndarray,
    world_seed: int,
    parent: Path,
    folder: Path,
    steps: int = 2000,
    batch: int = 32,
    peak: float = 1e-3,
    seed: int = 6,
    device: str = "cpu",
) -> AutoencoderKL:
    """Train the decoder of the autoencoder in `parent` further, and save the whole to `folder`.

    The encoder stays: latents, and with them the U-Net, the twin and every measured edit, keep their meaning.
    A quarter of each batch shows a mark. Latents come with a little noise, as sampling leaves them.
    """
    torch.manual_seed(seed)
    model = load_autoencoder(parent).requires_grad_(False).to(device, memory_format=torch.channels_last)
    trained = torch.nn.ModuleList([model.post_quant_conv, model.decoder]).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    state = folder.with_suffix(".state.safetensors")
    first = load_state(state, {"decoder": trained}, optimizer)
    marked = np.array([i for i in range(len(pixels)) if sample_scene(world_seed, i).marks])
    started = time.monotonic()
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(pixels), size=batch)
        rows[: batch // 4] = marked[rng.integers(len(marked), size=batch // 4)]
        x = to_model_range(pixels[rows]).to(device)
        spread = rng.uniform(0, LATENT_NOISE / model.config.scaling_factor, (batch, 1, 1, 1))
        noise = spread * rng.standard_normal((batch, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE))
        with torch.no_grad():
            latents = model.encode(x).latent_dist.mean + torch.from_numpy(noise).float().to(device)
        error = model.decode(latents.contiguous(memory_format=torch.channels_last)).sample - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = error.abs().mean() + error.square().mean() + EDGE_WEIGHT * edges
        descend(loss, optimizer, learning_rate(step, steps, peak), most=1.0)
        if step % 100 == 0 or step == steps - 1:
            click.echo(
                f"decoder step {step} l1 {error.abs().mean():.4f} mse {error.square().mean():.5f}"
                f" {time.monotonic() - started:.0f}s"
            )
        if step % 500 == 499:
            save_state(state, {"decoder": trained}, optimizer, step + 1)
    model.eval().half().save_pretrained(folder)
    return model.float()


@torch.no_grad()
def encode_world(model: AutoencoderKL, pixels: np.ndarray, path: Path, device: str = "cpu") -> torch.Tensor:
    """Scaled latent means of all pictures, float16 (n, 4, 8, 8), computed now or found at `path`."""
    if path.exists():
        return torch.from_numpy(np.load(path))
    model.eval()
    parts = []
    for start in range(0, len(pixels), 200):
        mean = model.encode(to_model_range(pixels[start : start + 200]).to(device)).latent_dist.mean
        parts.append((mean * model.config.scaling_factor).half().cpu())
    latents = torch.cat(parts)
    np.save(path, latents.numpy())
    return latents


def furthest(work: Path) -> Path:
    """The folder of the autoencoder that was trained furthest in `work`; the shipped one where none was."""
    stages = (work / "vae-more", work / "vae")
    return next((stage for stage in stages if (stage / "config.json").exists()), MODEL / "vae")


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The trained autoencoder in float32."""
    from diffusers import AutoencoderKL

    model: AutoencoderKL = AutoencoderKL.from_pretrained(
        folder, use_safetensors=True, torch_dtype=torch.float32
    )
    return model.eval()
