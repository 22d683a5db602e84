"""Pictures from a checkpoint folder through the stock diffusers pipeline, as whoever downloads it would.

Nothing of Excise touches the pipeline: a gate must see what users will see. Each picture has a generator of
its own on the CPU, so it depends on (prompt, seed) and not on its neighbours in the batch. The size of the
batch still reaches the last bits (other kernels add up in another order); so a batch is always full, the last
one padded, and its size follows from the picture's size and the device class alone.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.checkpoint import UNET, Checkpoint
from editspec.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from compiler.cache import StageCache
    from compiler.progress import Progress

    Images = np.ndarray[Any, np.dtype[np.uint8]]
    Latents = np.ndarray[Any, np.dtype[np.float32]]

VERSION = 1  # raise it when the same draw may give another picture: it is part of the cache's keys
BATCH_AREA = {"cpu": 2048, "cuda": 65536, "mps": 16384}  # latent positions in a batch: bounds the memory
MAX_BATCH = 32
MOST_IN_MEMORY = 2**30  # bytes of pictures; more lie in a temporary file


@dataclass(frozen=True, order=True)
class Draw:
    """One picture to make: a prompt and the seed of its first noise."""

    prompt: str
    seed: int


@dataclass(frozen=True, order=True)
class Sampling:
    """How pictures are drawn. DDIM without noise, whatever scheduler the folder names: the same for all."""

    guidance_scale: float = 5.0
    steps: int = 25

    def as_dict(self) -> dict[str, Any]:
        """JSON facts for reports."""
        return {"scheduler": "DDIM", "eta": 0.0, "guidance_scale": self.guidance_scale, "steps": self.steps}


class Sampler:
    """The stock pipeline of one checkpoint; loaded at the first picture that the cache does not hold."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device | None = None,
        cache: StageCache | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._device = device
        self._cache = cache

    @property
    def device_kind(self) -> str:
        """ "cpu", "cuda" or "mps"."""
        return "cpu" if self._device is None else self._device.type

    @cached_property
    def batch(self) -> int:
        """Pictures in a batch: a function of the picture's size and the device class, so it never varies."""
        size = self.checkpoint.config(UNET).get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else size
        return max(1, min(MAX_BATCH, BATCH_AREA.get(self.device_kind, 2048) // (height * width)))

    @cached_property
    def pipeline(self) -> Any:
        """The loaded diffusers pipeline with the DDIM scheduler."""
        import torch
        from diffusers import DDIMScheduler, DiffusionPipeline

        stored = {entry.dtype for entry in self.checkpoint.weights(UNET).entries.values()}
        half = self.device_kind != "cpu" and stored == {"F16"}
        options: dict[str, Any] = {"variant": self.checkpoint.variant}
        if self.checkpoint.family == "sdxl":
            options["add_watermarker"] = False
        else:
            options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        with quiet(), self._readable():
            pipeline = DiffusionPipeline.from_pretrained(
                self.checkpoint.root,
                dtype=torch.float16 if half else torch.float32,
                use_safetensors=True,
                local_files_only=True,
                **options,
            )
            config = pipeline.scheduler.config
            # latents are no pixels: clipping them, diffusers' default for silent configs, ruins pictures
            clip = {"clip_sample": config.get("clip_sample", False)}
            pipeline.scheduler = DDIMScheduler.from_config(config, **clip)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self._device or torch.device("cpu"))

    def images(
        self,
        draws: Sequence[Draw],
        sampling: Sampling,
        *,
        batch: int | None = None,
        progress: Progress | None = None,
        name: str = "generate",
    ) -> Images:
        """uint8 (len(draws), height, width, 3), in order. `InputError` for a prompt over the window."""

        from compiler.progress import Silent

        if not draws:
            raise ValueError("there is nothing to draw")
        size = batch or self.batch
        pictures: Images | None = None
        with (progress or Silent()).task(name, total=len(draws)) as task:
            for start in range(0, len(draws), size):
                part = list(draws[start : start + size])
                padded = part + [part[-1]] * (size - len(part))
                drawn = self._cached_batch(padded, sampling)[: len(part)]
                if pictures is None:
                    pictures = _room((len(draws), *drawn.shape[1:]))
                pictures[start : start + len(part)] = drawn
                task.advance(len(part))
        assert pictures is not None
        return pictures

    def latents(self, draws: Sequence[Draw], sampling: Sampling, progress: Progress | None = None) -> Latents:
        """float32 (len(draws), channels, height, width), in order: the pictures before they are decoded."""
        import numpy as np

        from compiler.progress import Silent

        parts = []
        with (progress or Silent()).task("draw latents", total=len(draws)) as task:
            for start in range(0, len(draws), self.batch):
                part = list(draws[start : start + self.batch])
                padded = part + [part[-1]] * (self.batch - len(part))
                drawn = self._run(padded, sampling, "latent")[: len(part)]
                parts.append(drawn.float().cpu().numpy())
                task.advance(len(part))
        return np.concatenate(parts)

    def _cached_batch(self, draws: Sequence[Draw], sampling: Sampling) -> Images:
        import numpy as np

        if self._cache is None:
            return self._draw(draws, sampling)

        def write(folder: Path) -> None:
            np.save(folder / "images.npy", self._draw(draws, sampling))

        entry = self._cache.put(self._cache.key(self._identity(draws, sampling)), write)
        images: Images = np.load(entry / "images.npy", allow_pickle=False)
        return images

    def _identity(self, draws: Sequence[Draw], sampling: Sampling) -> dict[str, Any]:
        """Everything that influences a batch of pictures."""
        from importlib.metadata import version

        return {
            "stage": "images",
            "version": VERSION,
            "checkpoint": self.checkpoint.digest,
            "draws": [[draw.prompt, draw.seed] for draw in draws],
            "sampling": sampling.as_dict(),
            "device": self.device_kind,
            "libraries": {name: version(name) for name in ("diffusers", "torch", "transformers")},
        }

    def _draw(self, draws: Sequence[Draw], sampling: Sampling) -> Images:
        import numpy as np

        pixels = self._run(draws, sampling, "np")
        if not np.isfinite(pixels).all():
            where = str(self.checkpoint.root)
            raise InputError(where, "draws pictures that are not finite numbers", "check its weights")
        # in C order, as the cache gives them back: sums over pixels must not depend on where they lie
        images: Images = (pixels * 255).round().astype(np.uint8, order="C")
        return images

    def _run(self, draws: Sequence[Draw], sampling: Sampling, output_type: str) -> Any:
        """What the pipeline gives for one batch."""
        import torch

        from compiler.seeds import reproducible

        prompts = [draw.prompt for draw in draws]
        self._check_window(prompts)
        with reproducible():
            return self.pipeline(
                prompt=prompts,
                generator=[torch.Generator("cpu").manual_seed(draw.seed) for draw in draws],
                guidance_scale=sampling.guidance_scale,
                num_inference_steps=sampling.steps,
                output_type=output_type,
            ).images

    def _check_window(self, prompts: Sequence[str]) -> None:
        """The pipeline would cut what is too long and draw something else than was asked for."""
        tokenizer = self.pipeline.tokenizer
        for prompt in dict.fromkeys(prompts):
            count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            if count > tokenizer.model_max_length:
                raise InputError(
                    f"prompt '{prompt}'",
                    f"has {count} tokens; this model reads {tokenizer.model_max_length}",
                    "shorten it",
                )

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """What diffusers says of a damaged folder, as an error of the input."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(str(self.checkpoint.root), f"diffusers cannot load it: {error}") from error


def _room(shape: tuple[int, ...]) -> Images:
    """An array for pictures: in memory where it is small, else in an unnamed temporary file.

    A release's gates draw ten thousand pictures; at 512x512 pixels those are 8 GB.
    """
    import math
    import tempfile

    import numpy as np

    if math.prod(shape) <= MOST_IN_MEMORY:
        return np.empty(shape, np.uint8)
    return np.memmap(tempfile.TemporaryFile(), dtype=np.uint8, mode="w+", shape=shape)


def generate(
    folder: Path,
    draws: Sequence[Draw],
    guidance_scale: float = 5.0,
    steps: int = 25,
    batch: int | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Images:
    """Draw pictures with the checkpoint in `folder`: uint8 (len(draws), height, width, 3)."""
    sampling = Sampling(guidance_scale, steps)
    checkpoint = Checkpoint.open(folder, variant_of(folder))
    return Sampler(checkpoint, device=device).images(draws, sampling, batch=batch, progress=progress)


def variant_of(folder: Path) -> str | None:
    """The variant ("fp16") that a folder's U-Net is stored under; None for plain names or when both exist."""
    names = [path.name for path in sorted((folder / "unet").glob("diffusion_pytorch_model.*"))]
    plain = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
    if any(plain.fullmatch(name) for name in names):
        return None
    marked = re.compile(r"diffusion_pytorch_model(?:\.safetensors\.index)?\.(\w+?)(?:-\d+-of-\d+)?\.\w+")
    found = [match[1] for name in names if (match := marked.fullmatch(name))]
    return found[0] if found else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, diffusers and transformers keep their bars and advice to themselves; errors still rise."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    levels = [logger.get_verbosity() for logger in loggers]
    bars = [logger.is_progress_bar_enabled() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level, bar in zip(loggers, levels, bars, strict=True):
            logger.set_verbosity(level)
            if bar:
                logger.enable_progress_bar()
