"""The published way to learn an h-space vector (Li et al. 2024), for comparison: noise of generated pictures.

A vector is added to the mid block's output; pictures that were generated with one prompt (y+) are noised, and
the noise must be predicted under another (y-). What the vector makes up for is what y- does not say. Both the
spatial vector and its form with one number for each channel are learned so; `MidBlockVector` uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.baselines.hspace import MidBlockVector
from compiler.sampling import predict
from compiler.seeds import epoch_batch, gaussian, generator, reproducible
from compiler.unet import config_of, latent_shape

if TYPE_CHECKING:
    from compiler.conditioning import Conditioning
    from compiler.sampling import Scheduler


@dataclass(frozen=True)
class PublishedSettings:
    """The authors' training: Adam at a constant 0.1, 10,000 steps of batch 2 over 1000 pictures."""

    steps: int = 10_000
    batch: int = 2
    learning_rate: float = 0.1
    spatial: bool = True


@dataclass(frozen=True)
class PublishedVector:
    """(channels, h, w) or (channels,), fp32, CPU; the loss of each step; evals, a backward counted as 2."""

    vector: Tensor
    curve: list[float]
    evals: int


def learn_published(
    unet: torch.nn.Module,
    scheduler: Scheduler,
    latents: Tensor,
    text: Conditioning,
    settings: PublishedSettings,
    seed: int,
) -> PublishedVector:
    """Learn from `latents` (n, c, h, w), the clean latents of pictures of y+; `text` is y-, a row for each.

    One row serves all pictures.

    Minimises mean |eps - e(x_t, t, y-; + vector)|^2 (for a v-prediction model, of the velocity).
    """
    from diffusers import DDPMScheduler

    noising = DDPMScheduler.from_config(scheduler.config)
    velocity = noising.config.prediction_type == "v_prediction"
    device, shape = text.hidden.device, _mid_shape(unet, text)
    text = text.expand(len(latents)) if len(text) == 1 else text
    start = torch.zeros(shape if settings.spatial else shape[:1], device=device)
    vector = start.requires_grad_(True)
    optimiser = torch.optim.Adam([vector], lr=settings.learning_rate)
    curve = []
    with reproducible():
        for step in range(settings.steps):
            names = ("published", step)
            rows = epoch_batch(len(latents), settings.batch, step, seed, "published")
            clean = latents[rows].to(device)
            noise = gaussian(clean.shape, seed, *names, "noise").to(device)
            count = int(noising.config.num_train_timesteps)
            draw = generator(seed, *names, "timestep")
            timestep = torch.randint(0, count, (settings.batch,), generator=draw).to(device)
            noised = noising.add_noise(clean, noise, timestep)
            target = noising.get_velocity(clean, noise, timestep) if velocity else noise
            optimiser.zero_grad(set_to_none=True)
            with MidBlockVector(vector, halves="both").hooked(unet):
                predicted = predict(unet, noised, timestep, text.rows(rows))
            loss = (predicted - target).square().mean()
            loss.backward()
            optimiser.step()
            curve.append(float(loss.detach()))
    return PublishedVector(vector.detach().cpu(), curve, 3 * settings.steps * settings.batch)


def _mid_shape(unet: torch.nn.Module, text: Conditioning) -> tuple[int, ...]:
    """(channels, h, w) of the mid block's output at the base's own resolution."""
    shapes: list[tuple[int, ...]] = []
    handle = unet.get_submodule("mid_block").register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(output.shape[1:]))
    )
    empty = torch.zeros((1, *latent_shape(config_of(unet))), device=text.hidden.device)
    try:
        with torch.no_grad():
            predict(unet, empty, torch.zeros(1, device=text.hidden.device), text.rows([0]))
    finally:
        handle.remove()
    return shapes[0]
