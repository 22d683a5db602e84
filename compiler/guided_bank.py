"""Samples banks of guided trajectories: those of a teacher with an effect, its guidance in every row.

Files and columns are those of compiler.bank, with one more column: `guidance`, g_t of (rows, channels, h, w).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from compiler.bank import INDEX, Bank, kept_steps, trajectories_in_a_batch
from compiler.bank_request import BankRequest, unet_calls
from compiler.conditioning import Conditioning
from compiler.guided_request import GuidedRequest
from compiler.sampling import Step, sample
from compiler.seeds import gaussian, generator, reproducible
from compiler.teacher import Teacher
from compiler.unet import config_of, latent_shape

if TYPE_CHECKING:
    from compiler.sampling import Scheduler


class GuidingTeacher(Teacher):
    """The frozen base, which also samples trajectories that an effect guides."""

    def bank(self, request: BankRequest | GuidedRequest) -> Bank:
        """The bank of either kind of request, from the stage cache or sampled now."""
        return super().bank(request)  # type: ignore[arg-type]  # it asks for as_dict() alone

    def _sample(self, request: BankRequest | GuidedRequest, folder: Path) -> None:
        if isinstance(request, BankRequest):
            super()._sample(request, folder)
            return
        evals = request.evals(self.scheduler.config)
        with reproducible(), self._context.progress.task("sample the guided bank", evals) as task:
            build_guided_bank(
                self.unet, self.scheduler, self.encode, self.unconditional, request, folder, task.advance
            )


def build_guided_bank(
    unet: torch.nn.Module,
    scheduler: Scheduler,
    encode: Callable[[Sequence[str]], Conditioning],
    unconditional: Conditioning,
    request: GuidedRequest,
    folder: Path,
    advance: Callable[[int], None] = lambda evals: None,
) -> int:
    """`compiler.bank.build_bank` for guided trajectories; returns the evals it took.

    A trajectory starts from the noise that the plain bank of the same prompt and seed starts from.
    """
    plain = request.plain
    embedded, further = encode(plain.prompts), [encode([prompt]) for prompt in request.effect.prompts]
    plan = [(number, copy) for number, count in enumerate(plain.trajectories) for copy in range(count)]
    batch = trajectories_in_a_batch(config_of(unet))
    evals, names = 0, list[str]()
    for start in range(0, len(plan), batch):
        part = plan[start : start + batch]
        recorder = _Recorder(request, part, start, unet_calls(scheduler.config, plain.steps))
        draws = [(plain.seed, "bank", plain.prompts[number], copy) for number, copy in part]
        noise = torch.stack([gaussian(latent_shape(config_of(unet)), *draw, "noise") for draw in draws])
        sampled = sample(
            unet,
            scheduler,
            noise.to(embedded.hidden.device),
            unconditional,
            embedded.rows([number for number, _ in part]),
            steps=plain.steps,
            guidance_scale=plain.guidance_scale,
            generators=[generator(*draw, "scheduler") for draw in draws],
            further=further,
            combine=recorder.combine,
        )
        names.append(f"rows-{len(names):05}.safetensors")
        save_file(recorder.shard(sampled.latents), folder / names[-1], metadata={"format": "pt"})
        evals += sampled.evals
        advance(sampled.evals)
    index = {"request": request.as_dict(), "shards": names, "evals": evals}
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", "utf-8")
    return evals


class _Recorder:
    """Guides one batch of trajectories and keeps the rows that were drawn."""

    def __init__(
        self, request: GuidedRequest, part: Sequence[tuple[int, int]], first: int, calls: int
    ) -> None:
        self._guidance = request.effect.begin()
        self._calls, self._first = calls, first
        self._storage: torch.dtype = getattr(torch, request.plain.storage)
        scales = [request.scales[(first + place) % len(request.scales)] for place in range(len(part))]
        self._scales = torch.tensor(scales)[:, None, None, None]
        changes = [request.effect.changes(request.effect.branch, scale) for scale in scales]
        self._changes = torch.tensor(changes).T[:, :, None, None, None]
        plain = request.plain
        draws = [generator(plain.seed, "bank", plain.prompts[number], copy, "steps") for number, copy in part]
        self._keep = torch.stack([kept_steps(calls, plain.strata, draw) for draw in draws])
        self._prompt = torch.tensor([number for number, _ in part])
        self._rows: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def combine(self, step: Step) -> Tensor:
        """The teacher's prediction: plain guidance of branches that the effect has changed."""
        guidance = self._guidance(step)
        chosen = (self._keep == step.index).any(1).nonzero()[:, 0]
        here = chosen.to(guidance.device)
        row = {
            "model_input": step.model_input[here],
            "timestep": torch.full((len(chosen),), step.timestep),
            "uncond": step.uncond[here],
            "cond": step.cond[here],
            "guidance": guidance[here],
            "prompt": self._prompt[chosen],
            "trajectory": chosen + self._first,
            "step": torch.full((len(chosen),), step.index),
        }
        for name, value in row.items():
            self._rows.setdefault(name, []).append(value.cpu())
        text, empty = self._changes.to(guidance.device)
        scales = self._scales.to(guidance.device)
        uncond: Tensor = step.uncond + empty * guidance
        cond: Tensor = step.cond + text * guidance
        return uncond + scales * (cond - uncond)  # each trajectory at a guidance scale of its own

    def shard(self, latents: Tensor) -> dict[str, Tensor]:
        """The kept rows in order of trajectory and step, and the final latents."""
        rows = {name: torch.cat(values) for name, values in self._rows.items()}
        order = torch.argsort(rows["trajectory"] * self._calls + rows["step"])
        shard = {name: values[order] for name, values in rows.items()} | {"latents": latents.cpu()}
        return {
            name: (value.to(self._storage) if value.ndim == 4 else value).contiguous()
            for name, value in shard.items()
        }
