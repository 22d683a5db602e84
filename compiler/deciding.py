"""How long it stays open along a trajectory which group is drawn, told by the base itself.

Trajectories from one noise z, under each group's name, drift apart. Where they are x and x' = x + s d, with s
the size of the noise in x_t, x would under the other name have come of the noise z - d, nearly: it is
exp(<z, d> - |d|^2 / 2) times as likely there. So the names' flows alone say, at every step, how surely x_t
shows its group. Before that a neutral prompt has to predict the mixture; after it, only what x_t shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.bank_request import unet_calls
from compiler.groups import group_names, group_shares, neutral_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.teacher import Teacher
    from editspec import Balance

NOISES = 24  # spread over the neutral prompts, each under every group
DOUBT = 0.04  # of the doubt before the first step: a group is decided where less is left
UNKNOWN = 0.2  # where the noise schedule is not known: right for who is drawn, early in every trajectory


def deciding_evals(edit: Balance, scheduler_config: Mapping[str, Any]) -> int:
    """Evals of `doubts`."""
    return 2 * NOISES * len(group_names(edit)) * unet_calls(scheduler_config, edit.sampling_steps)


def share_open(doubts: Sequence[float]) -> float:
    """The share of a trajectory in which its group is open, of the doubt before each of its steps."""
    decided = next((step for step, doubt in enumerate(doubts) if doubt < DOUBT), len(doubts))
    return decided / len(doubts) if doubts else UNKNOWN


def doubts(edit: Balance, teacher: Teacher, advance: Callable[[int], None]) -> list[float]:
    """Before each step the chance that x_t shows another group than its own, as a share of that at random.

    Empty where the scheduler has no discrete noise schedule.
    """
    import torch

    from compiler.bank import trajectories_in_a_batch
    from compiler.seeds import gaussian, reproducible
    from compiler.unet import config_of, latent_shape

    if getattr(teacher.scheduler, "alphas_cumprod", None) is None:
        return []
    config, neutrals = config_of(teacher.unet), neutral_prompts(edit)
    asked = [neutrals[place * len(neutrals) // NOISES] for place in range(NOISES)]
    batch, shape = trajectories_in_a_batch(config), latent_shape(config)
    shares = torch.tensor(group_shares(edit), dtype=torch.float64)
    wrong = []
    with reproducible():
        for start in range(0, NOISES, batch):
            part = asked[start : start + batch]
            draws = [(teacher.seed, "deciding", edit.id, start + place) for place in range(len(part))]
            noise = torch.stack([gaussian(shape, *draw, "noise") for draw in draws])
            paths = []
            for group in range(len(shares)):
                named = [neutral.named[group] for neutral in part]
                paths.append(_path(edit, teacher, noise, named, draws))
                advance(2 * len(part) * len(paths[-1]))
            wrong.append(_wrong(torch.stack(paths), noise, shares))
    found = torch.cat(wrong, dim=1).mean(1) / (1 - shares.square().sum())
    return [round(float(doubt), 4) for doubt in found]


def _path(
    edit: Balance,
    teacher: Teacher,
    noise: Tensor,
    prompts: Sequence[str],
    draws: Sequence[tuple[int, str, str, int]],
) -> Tensor:
    """x_t before each step in units of its noise, (steps, n, c, h, w)."""
    import torch

    from compiler.sampling import Step, sample
    from compiler.seeds import generator

    alphas = torch.as_tensor(teacher.scheduler.alphas_cumprod)  # type: ignore[attr-defined]
    seen = []

    def observe(step: Step) -> None:
        size = float((1 - alphas[round(step.timestep)]).sqrt())
        seen.append(step.model_input.cpu() / size)

    text = teacher.encode(tuple(prompts))
    sample(
        teacher.unet,
        teacher.scheduler,
        noise.to(text.hidden.device),
        teacher.unconditional,
        text,
        steps=edit.sampling_steps,
        guidance_scale=edit.guidance_scale,
        generators=[generator(*draw, "scheduler") for draw in draws],
        observe=observe,
    )
    return torch.stack(seen)


def _wrong(paths: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
    """The chance of the other groups, (steps, n), where groups come in these shares.

    `paths` (groups, steps, n, c, h, w) are x_t in units of its noise.
    """
    import torch

    total = torch.zeros(paths.shape[1], len(noise), dtype=torch.float64)
    for own, share in enumerate(shares):
        apart = (paths - paths[own]).double()
        likelier = (apart * noise).flatten(3).sum(3) - apart.square().flatten(3).sum(3) / 2
        chances = (likelier + shares.log()[:, None, None]).softmax(0)
        total += share * (1 - chances[own])
    return total
