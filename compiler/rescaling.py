"""Gives a published h-space vector the size at which, folded into a bias, it does what its hook did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.bank_request import BankRequest
from compiler.discovery import scales
from compiler.shift_cost import fitting_evals
from compiler.sites import mid_output

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compiler.checkpoint import Checkpoint
    from compiler.conditioning import Conditioning
    from compiler.directions import Found
    from compiler.passes import PassContext
    from editspec import Direction, Shift

TRAJECTORIES = 12
EXAMPLES = 24  # of the search: two rows of each trajectory


def mid_side(checkpoint: Checkpoint) -> int | None:
    """Width and height of the mid block's activations at the base's own resolution; None if not a square."""
    config = checkpoint.config("unet")
    size = config.get("sample_size") or 64
    if mid_output(checkpoint.weights("unet").entries) is None or not isinstance(size, int):
        return None
    return size >> (len(config["block_out_channels"]) - 1)


def rescaling_request(edit: Shift, seed: int) -> BankRequest:
    """A small bank of the edit's prompts."""
    small = replace(edit, trajectories=TRAJECTORIES, timesteps=max(2, -(-EXAMPLES // TRAJECTORIES)))
    return BankRequest.of(small, seed, edit.prompts, TRAJECTORIES)


def rescaling_evals(edit: Shift, seed: int, checkpoint: Checkpoint) -> int:
    """Evals of the bank, the hooked predictions and the search."""
    if not edit.prompts:
        return 0
    request = rescaling_request(edit, seed)
    scheduler = checkpoint.config("scheduler")
    return request.evals(scheduler) + request.rows(scheduler) + fitting_evals(EXAMPLES, 1, 2)


def rescaled(path: Path, edit: Shift, direction: Direction, context: PassContext) -> Found:
    """Import the vector: project, take the common direction off, and search its size in both halves.

    The teacher is the published use: the spatial vector added to the mid block in the text half alone. Raises
    InputError for a file that cannot be what it claims.
    """
    import torch

    from compiler.carriers import Biases
    from compiler.directions import Found
    from compiler.published_directions import read_published
    from compiler.shift import fit
    from compiler.shift_examples import Part, ShiftSettings
    from compiler.teacher import Teacher

    entries = context.checkpoint.weights("unet").entries
    name, side = mid_output(entries), mid_side(context.checkpoint)
    assert name is not None
    assert side is not None
    published = read_published(path, direction.concept, entries[name].shape[0], side)
    teacher = Teacher(context)
    request = rescaling_request(edit, context.seed)
    teacher.refuse_cut_prompts(f"{context.spec.pointer(edit)}/prompts", request.prompts)
    bank = teacher.bank(request)
    number = {text: place + 1 for place, text in enumerate(request.prompts)}
    prompts = teacher.unconditional.join(teacher.encode(request.prompts))
    read = torch.tensor([number[bank.prompts[p]] for p in bank.column("prompt").tolist()])
    every = torch.arange(len(bank))
    inputs, base = bank.take("model_input", every), bank.take("cond", every)
    hooked = _hooked(published.spatial, inputs, bank.column("timestep"), prompts.rows(read), teacher.unet)
    examples = torch.stack([every, read], dim=1)
    part = Part(
        "hook", bank, examples, lambda rows, w: w * (hooked[rows] - base[rows]), 1.0, EXAMPLES, EXAMPLES
    )
    factor = float(context.checkpoint.config("unet").get("mid_block_scale_factor", 1) or 1)
    piece = {name: (factor * published.channels).to(context.device)}
    settings = ShiftSettings(1, edit.learning_rate, context.seed, scales(edit), ("import", published.concept))
    done = fit(teacher.unet, Biases([name]), prompts, [part], settings, [piece])
    carried = piece[name].cpu()
    size = float(done.vectors[name] @ carried / (carried @ carried))
    evals = request.evals(teacher.scheduler.config) + len(bank) + done.evals
    facts = {
        "published": path.name,
        "concept": published.concept,
        "energy_of_mean": round(published.energy_of_mean, 4),
        "energy_kept": round(published.energy_kept, 4),
        "rescaled_by": float(f"{size:.4g}"),
        "error_left": round(done.measured["start"] / done.measured["zero"], 4)
        if done.measured["zero"]
        else 0.0,
        "sites": "mid",
        "gated": False,
        "prompts": list(request.prompts),
        "base": context.checkpoint.digest,
        "family": context.checkpoint.family,
        "seed": context.seed,
        "evals": evals,
    }
    return Found(done.vectors, facts)


def _hooked(
    spatial: Tensor, model_input: Tensor, timestep: Tensor, text: Conditioning, unet: torch.nn.Module
) -> Tensor:
    """The base's predictions for `text` with the vector on its mid block: (n, channels, h, w), CPU."""
    import torch

    from compiler.baselines.hspace import MidBlockVector
    from compiler.sampling import predict
    from compiler.seeds import reproducible
    from compiler.unet import config_of, examples_at_once

    device, batch = text.hidden.device, examples_at_once(config_of(unet))
    found = []
    with reproducible(), torch.no_grad(), MidBlockVector(spatial, halves="both").hooked(unet):
        for start in range(0, len(timestep), batch):
            here = slice(start, start + batch)
            rows = text.rows(torch.arange(len(timestep))[here])
            found.append(predict(unet, model_input[here].to(device), timestep[here].to(device), rows).cpu())
    return torch.cat(found)
