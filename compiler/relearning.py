"""Brings an erased concept back by fine-tuning, as whoever holds the weights can, and draws it on the way.

The attacker is given what is cheap and strong: pictures of the concept by the base itself, its own prompts
as captions, the ordinary denoising loss at fresh noise (Ho et al. 2020, eq. 14), and Adam on every weight of
`SELECTION`. Nothing is kept beside it: what else the fine-tuning breaks is not the attacker's concern.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.generate import Draw, Sampler, Sampling

if TYPE_CHECKING:
    import torch

    from compiler.bank import Bank
    from compiler.cache import StageCache
    from compiler.distil import Distilled, Watch
    from compiler.generate import Images
    from compiler.progress import Progress

VERSION = 1  # raise it when the same relearning may give other pictures
SELECTION = "full"
BATCH = 8
NOISINGS = 25  # of each picture, at most: with the default 32 pictures and 100 steps no noise comes twice


@dataclass(frozen=True)
class Relearning:
    """What is trained on (draws of the base), how, after which steps which pictures are drawn."""

    lessons: tuple[Draw, ...]
    asked: tuple[Draw, ...]
    sampling: Sampling
    looks: tuple[int, ...]
    learning_rate: float
    seed: int

    @property
    def evals(self) -> int:
        """U-Net evals: the lessons' pictures, training (a backward counts two), the pictures of each look."""
        passes = 2 if self.sampling.guidance_scale > 1 else 1
        pictures = len(self.lessons) + len(self.looks) * len(self.asked)
        return pictures * self.sampling.steps * passes + 3 * BATCH * max(self.looks)


@dataclass(frozen=True)
class Models:
    """Both models: their samplers, and where and how to compute with them."""

    base: Sampler
    edited: Sampler
    device: torch.device | None
    cache: StageCache | None
    progress: Progress


def relearn(attack: Relearning, models: Models) -> dict[int, Images]:
    """The asked pictures by the edited model after each number of steps looked at.

    Cached by all that decides them. Raises `compiler.distil.Diverged` where the loss is not finite.
    """
    if models.cache is not None:
        key = models.cache.key(_identity(attack, models))
        stored = models.cache.get(key) or models.cache.put(key, lambda folder: _write(attack, models, folder))
        return _read(stored)
    with tempfile.TemporaryDirectory() as folder:
        _write(attack, models, Path(folder))
        return _read(Path(folder))


def _write(attack: Relearning, models: Models, folder: Path) -> None:
    import numpy as np

    from compiler.judging import changed

    drawer = Sampler(models.edited.checkpoint, device=models.device)  # uncached: its weights are changed

    def look(steps: int, changes: Mapping[str, torch.Tensor]) -> None:
        with changed(drawer.pipeline.unet, changes):
            pictures = drawer.images(
                attack.asked, attack.sampling, progress=models.progress, name=f"draw after {steps} steps"
            )
        np.save(folder / f"{steps}.npy", pictures)

    _fine_tune(attack, models, look)


def _fine_tune(attack: Relearning, models: Models, look: Watch) -> Distilled:
    """Train the edited U-Net on the base's pictures, showing it to `look`."""
    import torch

    from compiler.conditioning import encode
    from compiler.distil import DistilSettings, distil
    from compiler.precision import rounds
    from compiler.selections import select
    from compiler.terms import Term
    from compiler.text import TextEncoder
    from compiler.unet import build_unet

    edited, device = models.edited.checkpoint, models.device or torch.device("cpu")
    bank = _bank(attack, models)
    examples = torch.stack([torch.arange(len(bank)), bank.column("prompt")], dim=1)
    term = Term("relearn", bank, examples, lambda rows: bank.take("noise", rows), 1.0, BATCH)
    settings = DistilSettings(
        max(attack.looks), attack.learning_rate, attack.seed, ("relearn",), bfloat16=rounds("auto", device)
    )
    with models.progress.task("fine-tune", 3 * BATCH * settings.steps) as task:
        return distil(
            build_unet(edited, device),
            select(edited.weights("unet").entries, SELECTION),
            encode(TextEncoder.from_checkpoint(edited, device), bank.prompts, edited),
            [term],
            settings,
            task.advance,
            look,
            attack.looks,
        )


def _bank(attack: Relearning, models: Models) -> Bank:
    """Rows for the denoising loss: the lessons' latents by the base, noised as often as training asks for."""
    import torch

    from compiler.noised import noised_bank

    prompts = list(dict.fromkeys(draw.prompt for draw in attack.lessons))
    wanted = -(-BATCH * max(attack.looks) // len(attack.lessons))
    return noised_bank(
        torch.from_numpy(models.base.latents(attack.lessons, attack.sampling, models.progress)),
        [prompts.index(draw.prompt) for draw in attack.lessons],
        prompts,
        models.base.pipeline.scheduler,
        timesteps=min(NOISINGS, wanted),
        seed=attack.seed,
        names=("relearn",),
    )


def _identity(attack: Relearning, models: Models) -> dict[str, Any]:
    from compiler.device import choose
    from compiler.versions import library_versions

    return {
        "stage": "relearn",
        "version": VERSION,
        "base": models.base.checkpoint.digest,
        "edited": models.edited.checkpoint.digest,
        "attack": asdict(attack),
        "libraries": library_versions(),
        "device": choose(models.edited.device_kind).device_class,
    }


def _read(folder: Path) -> dict[int, Images]:
    import numpy as np

    found: Sequence[Path] = sorted(folder.glob("*.npy"), key=lambda path: int(path.stem))
    return {int(path.stem): np.load(path, allow_pickle=False) for path in found}
