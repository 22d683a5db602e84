"""Both models as attacks use them: in fp32, what they read given as embeddings, drawn from named noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from compiler.bank import trajectories_in_a_batch
from compiler.conditioning import Conditioning, encode
from compiler.passes import PassContext
from compiler.sampling import sample
from compiler.seeds import gaussian, generator, reproducible
from compiler.teacher import Teacher
from compiler.text import TextEncoder
from compiler.unet import build_unet, config_of, latent_shape
from compiler.vae import Autoencoder

if TYPE_CHECKING:
    from compiler.cache import StageCache
    from compiler.checkpoint import Checkpoint
    from compiler.generate import Images, Sampling
    from compiler.progress import Progress
    from compiler.sampling import Scheduler
    from editspec import EditSpec

Side = Literal["base", "edited"]


class Models:
    """The base and what an edit made of it. `spec` is read for its seed; banks come from the stage cache."""

    def __init__(
        self,
        spec: EditSpec,
        base: Checkpoint,
        edited: Checkpoint,
        device: torch.device,
        cache: StageCache,
        progress: Progress,
    ) -> None:
        self._checkpoint, self._device, self._progress = edited, device, progress
        self.teacher = Teacher(PassContext(spec, base, {}, spec.seed, device, cache, progress))

    @cached_property
    def edited(self) -> torch.nn.Module:
        """The edited U-Net, fp32, without gradients of its own."""
        return build_unet(self._checkpoint, self._device)

    @cached_property
    def text(self) -> TextEncoder:
        """The edited checkpoint's text encoder(s)."""
        return TextEncoder.from_checkpoint(self._checkpoint, self._device)

    @cached_property
    def scheduler(self) -> Scheduler:
        """DDIM without noise, as gates draw, whatever scheduler the checkpoint names."""
        from diffusers import DDIMScheduler

        config = self._checkpoint.config("scheduler")
        clip = {"clip_sample": config.get("clip_sample", False)}
        scheduler: Scheduler = DDIMScheduler.from_config(config, **clip)
        return scheduler

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """A row for each prompt."""
        return encode(self.text, prompts, self._checkpoint)

    def images(
        self,
        side: Side,
        rows: Conditioning,
        noises: Sequence[tuple[str | int, ...]],
        sampling: Sampling,
        seed: int,
        name: str,
    ) -> Images:
        """One picture for each row (n, height, width, 3), from the first noise of that name."""
        unet = self.teacher.unet if side == "base" else self.edited
        shape, size = latent_shape(config_of(unet)), trajectories_in_a_batch(config_of(unet))
        found = []
        with self._progress.task(name, len(noises)) as task, reproducible():
            for start in range(0, len(noises), size):
                names = noises[start : start + size]
                drawn = sample(
                    unet,
                    self.scheduler,
                    torch.stack([gaussian(shape, seed, *one) for one in names]).to(self._device),
                    self.teacher.unconditional,
                    rows.rows(range(start, start + len(names))),
                    steps=sampling.steps,
                    guidance_scale=sampling.guidance_scale,
                    generators=[generator(seed, *one, "scheduler") for one in names],
                )
                found += [np.asarray(picture) for picture in self._autoencoder.decode(drawn.latents)]
                task.advance(len(names))
        return np.stack(found)

    @cached_property
    def _autoencoder(self) -> Autoencoder:
        return Autoencoder(self._checkpoint, self._device)
