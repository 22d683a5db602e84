"""Rows for training made by noising latents: ends of the base's trajectories, or a given image.

Concept ablation as published trains at x_t = sqrt(a_t) z + sqrt(1 - a_t) noise for clean latents z (Ho et al.
2020, eq. 4; Kumari et al. 2023, eq. 4). The result is a `Bank` like that of trajectories, with the noise as a
column, so that the engine need not know where x_t came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.bank import Bank, Shard
from compiler.conditioning import Conditioning
from compiler.sampling import predict
from compiler.seeds import gaussian, generator
from compiler.unet import config_of, examples_at_once
from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.sampling import Scheduler


def noised_bank(
    latents: Tensor,
    prompt: Sequence[int],
    prompts: Sequence[str],
    scheduler: Scheduler,
    *,
    timesteps: int,
    seed: int,
    names: tuple[str, ...] = (),
) -> Bank:
    """`timesteps` rows for each of `latents` (n, c, h, w), at t drawn from as many equal stretches of time.

    `prompt` gives the number in `prompts` that each latent belongs to. Columns: model_input, timestep,
    prompt, trajectory, step, and `noise`: the true answer, as noise or v, whichever the model predicts.
    """
    alphas = _alphas(scheduler)
    count = len(alphas)
    strata = min(timesteps, count)
    rows: dict[str, list[Tensor]] = {}
    for number, latent in enumerate(latents.float().cpu()):
        draw: tuple[str | int, ...] = ("noised", *names, prompts[prompt[number]], number)
        uniform = torch.rand(strata, generator=generator(seed, *draw, "timesteps"))
        t = ((torch.arange(strata) + uniform) * count / strata).long().clamp(max=count - 1)
        noise = gaussian((strata, *latent.shape), seed, *draw, "noise")
        keep, mix = (part[:, None, None, None] for part in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
        row = {
            "model_input": keep * latent + mix * noise,
            "timestep": t.float(),
            "noise": _answer(scheduler, latent, noise, keep, mix),
            "prompt": torch.full((strata,), prompt[number]),
            "trajectory": torch.full((strata,), number),
            "step": torch.arange(strata),
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    shard = {name: torch.cat(values) for name, values in rows.items()}
    return Bank(tuple(prompts), ({**shard, "latents": latents.float().cpu()},))


@torch.no_grad()
def with_predictions(bank: Bank, unet: torch.nn.Module, texts: Mapping[str, Conditioning]) -> Bank:
    """The bank with further columns: the U-Net's predictions for other texts, one row for each prompt.

    Costs one eval for each row and text.
    """
    batch = 2 * examples_at_once(config_of(unet))
    shards: list[Shard] = []
    for shard in bank.shards:
        found: dict[str, Tensor] = {}
        for name, text in texts.items():
            device = text.hidden.device
            parts = []
            for start in range(0, len(shard["timestep"]), batch):
                here = slice(start, start + batch)
                x, t = shard["model_input"][here].to(device), shard["timestep"][here].to(device)
                parts.append(predict(unet, x, t, text.rows(shard["prompt"][here])).cpu())
            found[name] = torch.cat(parts)
        shards.append({**shard, **found})
    return Bank(bank.prompts, tuple(shards))


def _alphas(scheduler: Scheduler) -> Tensor:
    """Cumulative products of the noise schedule at every training timestep, (T,)."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or _prediction_type(scheduler) not in ("epsilon", "v_prediction"):
        raise InputError(
            "scheduler",
            f"noised inputs need a model that predicts noise or v over a discrete noise schedule, not "
            f"{scheduler.config.get('_class_name')} with '{_prediction_type(scheduler)}'",
            "leave 'inputs' and 'objective' out: trajectories need neither",
        )
    return torch.as_tensor(alphas).float().cpu()


def _answer(scheduler: Scheduler, latent: Tensor, noise: Tensor, keep: Tensor, mix: Tensor) -> Tensor:
    """What the model should predict: the noise, or v = sqrt(a) noise - sqrt(1 - a) z (Salimans & Ho 2022)."""
    return noise if _prediction_type(scheduler) == "epsilon" else keep * noise - mix * latent


def _prediction_type(scheduler: Scheduler) -> str:
    return str(scheduler.config.get("prediction_type", "epsilon"))
