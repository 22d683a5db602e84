"""The trajectory bank: what the frozen base read and predicted along sampled trajectories, kept for training.

While the sampler runs on the base, x_t does not depend on what is being trained, and each guided step
already computes e_0 and e_c. So every step is a training example whose teacher is free. Sampled once in large
batches, a few steps of each trajectory are stored under a digest of everything that made them; edits, sweeps
and retries with the same inputs share them. Latents only: no image is decoded. (METHODS, section 0.)
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compiler.bank_request import BankRequest, unet_calls
from compiler.conditioning import Conditioning
from compiler.sampling import Step, predict, sample
from compiler.seeds import gaussian, generator
from compiler.unet import config_of, latent_shape

if TYPE_CHECKING:
    from compiler.sampling import Scheduler

INDEX = "bank.json"

Shard: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Bank:
    """Rows of sampled trajectories, in shards that may lie on disk.

    Columns: model_input (what the U-Net read at x_t), uncond (e_0), cond (e_c) and further predictions, each
    (rows, channels, h, w); timestep, prompt (number in `prompts`), trajectory and step, each (rows,). Each
    shard also holds `latents`, the final latents of its trajectories.
    """

    prompts: tuple[str, ...]
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(len(shard["timestep"]) for shard in self.shards)

    def column(self, name: str) -> Tensor:
        """A whole small column (timestep, prompt, trajectory, step), or all final latents."""
        return torch.cat([shard[name] for shard in self.shards])

    def take(self, name: str, rows: Tensor) -> Tensor:
        """The given rows of one column, in that order, floats as fp32. Reads from disk only these rows."""
        starts = [0]
        for shard in self.shards:
            starts.append(starts[-1] + len(shard["timestep"]))
        picked = []
        for row in rows.tolist():
            number = bisect_right(starts, row) - 1
            picked.append(self.shards[number][name][row - starts[number]])
        taken = torch.stack(picked)
        return taken.float() if taken.is_floating_point() else taken


def join(banks: Sequence[Bank]) -> Bank:
    """One bank of all rows in order; `prompt` and `trajectory` are renumbered."""
    prompts: tuple[str, ...] = ()
    shards: list[Shard] = []
    trajectories = 0
    for bank in banks:
        for shard in bank.shards:
            moved = {
                "prompt": shard["prompt"] + len(prompts),
                "trajectory": shard["trajectory"] + trajectories,
            }
            shards.append({**shard, **moved})
        prompts += bank.prompts
        trajectories += sum(len(shard["latents"]) for shard in bank.shards)
    return Bank(prompts, tuple(shards))


def build_bank(
    unet: torch.nn.Module,
    scheduler: Scheduler,
    encode: Callable[[Sequence[str]], Conditioning],
    unconditional: Conditioning,
    request: BankRequest,
    folder: Path,
    advance: Callable[[int], None] = lambda evals: None,
) -> int:
    """Sample what `request` asks for and write it to `folder`, shard by shard; returns the evals it took.

    `encode` gives a row for each prompt; `unconditional` is one row. `advance` is told of evals as they are
    spent. Memory holds one batch of trajectories, whatever the request's size.
    """
    embedded = encode(request.prompts)
    others = {name: encode(prompts) for name, prompts in request.also.items()}
    plan = [(number, copy) for number, count in enumerate(request.trajectories) for copy in range(count)]
    batch = trajectories_in_a_batch(config_of(unet))
    evals, names = 0, list[str]()
    for start in range(0, len(plan), batch):
        part = plan[start : start + batch]
        shard, spent = _sample_shard(unet, scheduler, embedded, unconditional, others, request, part, start)
        names.append(f"rows-{len(names):05}.safetensors")
        # One metadata key only: more would be written in random order, and equal banks must be equal bytes.
        save_file(shard, folder / names[-1], metadata={"format": "pt"})
        evals += spent
        advance(spent)
    index = {"request": request.as_dict(), "shards": names, "evals": evals}
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", "utf-8")
    return evals


def load_bank(folder: Path) -> Bank:
    """Open what `build_bank` wrote. The files are mapped, not read: rows come from disk as they are taken."""
    index = json.loads((folder / INDEX).read_text("utf-8"))
    shards = tuple(load_file(folder / name) for name in index["shards"])
    return Bank(tuple(index["request"]["prompts"]), shards)


def trajectories_in_a_batch(config: Mapping[str, Any]) -> int:
    """How many trajectories move together, from latent size alone: bounded memory, the same on every device.

    32 at 8x8 latents, 8 at 64x64 (SD 1.x; some 2 GB of activations in fp32), 2 at 128x128 (SDXL).
    """
    _, height, width = latent_shape(config)
    return max(1, min(32, 32768 // (height * width)))


@torch.no_grad()
def _sample_shard(
    unet: torch.nn.Module,
    scheduler: Scheduler,
    embedded: Conditioning,
    unconditional: Conditioning,
    others: Mapping[str, Conditioning],
    request: BankRequest,
    part: Sequence[tuple[int, int]],
    first: int,
) -> tuple[dict[str, Tensor], int]:
    """The rows of some trajectories, each given as (number of its prompt, its number under that prompt)."""
    shape = latent_shape(config_of(unet))
    draws = [(request.seed, "bank", request.prompts[number], copy) for number, copy in part]
    device = embedded.hidden.device
    noise = torch.stack([gaussian(shape, *draw, "noise") for draw in draws]).to(device)
    calls = unet_calls(scheduler.config, request.steps)
    keep = torch.stack([kept_steps(calls, request.strata, generator(*draw, "steps")) for draw in draws])
    prompt = torch.tensor([number for number, _ in part])
    rows: dict[str, list[Tensor]] = {}

    def observe(step: Step) -> None:
        chosen = (keep == step.index).any(1).nonzero()[:, 0]
        here = chosen.to(device)
        row = {
            "model_input": step.model_input[here],
            "timestep": torch.full((len(chosen),), step.timestep),
            "uncond": step.uncond[here],
            "cond": step.cond[here],
            "prompt": prompt[chosen],
            "trajectory": chosen + first,
            "step": torch.full((len(chosen),), step.index),
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value.cpu())

    sampled = sample(
        unet,
        scheduler,
        noise,
        unconditional,
        embedded.rows(prompt),
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        generators=[generator(*draw, "scheduler") for draw in draws],
        observe=observe,
    )
    shard = {name: torch.cat(values) for name, values in rows.items()}
    order = torch.argsort(shard["trajectory"] * calls + shard["step"])
    shard = {name: values[order] for name, values in shard.items()}
    for name, texts in others.items():
        shard[name] = _predict_rows(unet, shard, texts, 2 * len(part))
    evals = sampled.evals + len(others) * len(order)
    shard["latents"] = sampled.latents.cpu()
    storage: torch.dtype = getattr(torch, request.storage)
    wide = {"model_input", "uncond", "cond", "latents", *others}
    return {
        name: (value.to(storage) if name in wide else value).contiguous() for name, value in shard.items()
    }, evals


def _predict_rows(unet: torch.nn.Module, shard: Shard, texts: Conditioning, batch: int) -> Tensor:
    """Predictions of the base at a shard's rows for other prompts, one for each of the bank's prompts."""
    device = texts.hidden.device
    found = []
    for start in range(0, len(shard["timestep"]), batch):
        here = slice(start, start + batch)
        model_input, timestep = shard["model_input"][here].to(device), shard["timestep"][here].to(device)
        found.append(predict(unet, model_input, timestep, texts.rows(shard["prompt"][here])).cpu())
    return torch.cat(found)


def kept_steps(calls: int, strata: int, draw: torch.Generator) -> Tensor:
    """One step index drawn from each of `strata` equal stretches of `calls` steps: (min(strata, calls),)."""
    strata = min(strata, calls)
    edges = [number * calls // strata for number in range(strata + 1)]
    uniform = torch.rand(strata, generator=draw)
    low = torch.tensor(edges[:-1])
    width = torch.tensor(edges[1:]) - low
    return low + (uniform * width).long()
