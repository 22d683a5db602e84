"""Plain classifier-free-guided sampling with the base's own scheduler, showing every step to an observer.

The loop of the stock pipelines without their images: latents in, latents out. An observer sees what the U-Net
read and both of its predictions, which is all that a trajectory bank keeps.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

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
    e_c, `further` those of further prompts: noise or v, whichever the model predicts. Targets are mixtures of
    predictions whose weights sum to one, and v is affine in the noise at a fixed x_t, so a target in v is the
    v of the target in noise.
    """

    index: int
    timestep: float
    model_input: Tensor
    uncond: Tensor
    cond: Tensor
    further: tuple[Tensor, ...] = ()


Combine: TypeAlias = Callable[[Step], Tensor]
"""What a guidance makes of one step's predictions: the one the scheduler steps with, (n, channels, h, w)."""


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
    further: Sequence[Conditioning] = (),
    combine: Combine | None = None,
) -> Sampled:
    """Run n trajectories together from standard normal `noise` (n, c, h, w) to final latents.

    `unconditional` has one row, `prompts` n. `generators`, one for each trajectory, feed schedulers that draw
    noise at every step, so a trajectory's draws do not depend on its neighbours in the batch. `further` are
    prompts predicted beside these two at every step, each of one row or n; `combine` makes of all predictions
    the one to step with, by default classifier-free guidance.
    """
    device = noise.device
    count = len(noise)
    scheduler = type(scheduler).from_config(scheduler.config)  # multistep schedulers remember their last run
    scheduler.set_timesteps(steps, device=device)
    read = unconditional.expand(count).join(prompts)
    for other in further:
        read = read.join(other.expand(count) if len(other) == 1 else other)
    branches = 2 + len(further)
    options: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = list(generators)
    latents = noise * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        stacked = torch.cat([model_input] * branches)
        uncond, cond, *others = predict(unet, stacked, timestep.expand(len(stacked)), read).chunk(branches)
        step = Step(index, float(timestep), model_input, uncond, cond, tuple(others))
        if observe is not None:
            observe(step)
        guided = classifier_free_guidance(uncond, cond, guidance_scale) if combine is None else combine(step)
        latents = scheduler.step(guided, timestep, latents, **options, return_dict=False)[0]
    return Sampled(latents, branches * count * len(scheduler.timesteps))
