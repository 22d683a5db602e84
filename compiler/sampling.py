"""Plain classifier-free-guided sampling with the base's own scheduler, showing every step to an observer.

The loop of the stock pipelines without their images: latents in, latents out. An observer sees what the U-Net
read and both of its predictions, which is all that a trajectory bank keeps.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor

from compiler.conditioning import Conditioning
from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint


class Scheduler(Protocol):
    """What this loop asks of a diffusers scheduler."""

    config: Mapping[str, Any]
    init_noise_sigma: float
    timesteps: Tensor
    step: Callable[..., Any]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self: ...

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> None: ...

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """One call of the U-Net in a batch of n trajectories; all tensors (n, channels, h, w).

    `model_input` is x_t as the U-Net reads it, after `scale_model_input`. `uncond` and `cond` are e_0 and
    e_c: noise or v, whichever the model predicts. Targets are mixtures of predictions whose weights sum to
    one, and v is affine in the noise at a fixed x_t, so a target in v is the v of the target in noise.
    """

    index: int
    timestep: float
    model_input: Tensor
    uncond: Tensor
    cond: Tensor


@dataclass(frozen=True)
class Sampled:
    """Final latents (n, channels, h, w) and the evals that they took."""

    latents: Tensor
    evals: int


def load_scheduler(checkpoint: Checkpoint) -> Scheduler:
    """The base's own scheduler. Raises InputError for a class that this loop cannot drive."""
    config = checkpoint.config("scheduler")
    name = str(config.get("_class_name"))
    found = getattr(importlib.import_module("diffusers"), name, None) if name.endswith("Scheduler") else None
    where = str(checkpoint.root / "scheduler")
    if found is None or not hasattr(found, "scale_model_input") or not hasattr(found, "set_timesteps"):
        raise InputError(
            where, f"no sampler for the scheduler '{name}'", "use DDIMScheduler or another one of diffusers"
        )
    try:
        scheduler: Scheduler = found.from_config(config)
    except (ImportError, TypeError, ValueError) as error:
        raise InputError(where, f"{name} cannot be made from its config: {error}") from error
    return scheduler


def predict(unet: torch.nn.Module, model_input: Tensor, timestep: Tensor, text: Conditioning) -> Tensor:
    """One forward: model_input (n, c, h, w), timestep (n,) and n prompt rows to predictions (n, c, h, w)."""
    prediction: Tensor = unet(model_input, timestep, **text.arguments(), return_dict=False)[0]
    return prediction


def classifier_free_guidance(uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
    """Ho & Salimans 2022, in the form of Stable Diffusion: e_0 + w (e_c - e_0)."""
    return uncond + guidance_scale * (cond - uncond)


@torch.no_grad()
def sample(
    unet: torch.nn.Module,
    scheduler: Scheduler,
    noise: Tensor,
    unconditional: Conditioning,
    prompts: Conditioning,
    *,
    steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator],
    observe: Callable[[Step], None] | None = None,
) -> Sampled:
    """Run n trajectories together from standard normal `noise` (n, c, h, w) to final latents.

    `unconditional` has one row, `prompts` n. `generators`, one for each trajectory, feed schedulers that draw
    noise at every step, so a trajectory's draws do not depend on its neighbours in the batch.
    """
    device = noise.device
    count = len(noise)
    scheduler = type(scheduler).from_config(scheduler.config)  # multistep schedulers remember their last run
    scheduler.set_timesteps(steps, device=device)
    both = unconditional.expand(count).join(prompts)
    options: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = list(generators)
    latents = noise * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        predicted = predict(unet, torch.cat([model_input] * 2), timestep.expand(2 * count), both)
        uncond, cond = predicted.chunk(2)
        if observe is not None:
            observe(Step(index, float(timestep), model_input, uncond, cond))
        guided = classifier_free_guidance(uncond, cond, guidance_scale)
        latents = scheduler.step(guided, timestep, latents, **options, return_dict=False)[0]
    return Sampled(latents, 2 * count * len(scheduler.timesteps))
