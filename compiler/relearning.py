"""Brings an erased concept back by fine-tuning, as whoever holds the weights can, and draws it on the way.

The attacker is given what is cheap and strong: pictures of the concept by the base itself, its own prompts
as captions, the ordinary denoising loss at fresh noise (Ho et al. 2020, eq. 14), Adam on every weight of
`SELECTION` (on the miniature twice as quick as cross-attention alone), and a try at several learning rates.
Nothing is kept beside it: what else the fine-tuning breaks is not the attacker's concern.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.generate import Draw, Sampler, Sampling
from editspec.errors import InputError

if TYPE_CHECKING:
    import torch

    from compiler.bank import Bank
    from compiler.cache import StageCache
    from compiler.distil import Watch
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
    learning_rates: tuple[float, ...]
    seed: int

    @property
    def evals(self) -> int:
        """U-Net evals, at most: the lessons' pictures; for each learning rate training and every look's.

        A backward counts two.
        """
        picture = self.sampling.steps * (2 if self.sampling.guidance_scale > 1 else 1)
        each = 3 * BATCH * max(self.looks) + len(self.looks) * len(self.asked) * picture
        return len(self.lessons) * picture + len(self.learning_rates) * each


@dataclass(frozen=True)
class Models:
    """Both models: their samplers, and where and how to compute with them."""

    base: Sampler
    edited: Sampler
    device: torch.device | None
    cache: StageCache | None
    progress: Progress


def relearn(attack: Relearning, models: Models) -> dict[tuple[float, int], Images]:
    """The asked pictures by the edited model for each learning rate and number of steps looked at.

    Looks after a training has diverged are left out. Cached by all that decides them.
    """
    if models.cache is not None:
        key = models.cache.key(_identity(attack, models))
        stored = models.cache.get(key) or models.cache.put(key, lambda folder: _write(attack, models, folder))
        return _read(attack, stored)
    with tempfile.TemporaryDirectory() as folder:
        _write(attack, models, Path(folder))
        return _read(attack, Path(folder))


def _write(attack: Relearning, models: Models, folder: Path) -> None:
    import numpy as np
    import torch

    from compiler.distil import Diverged
    from compiler.judging import changed
    from compiler.unet import build_unet

    drawer = Sampler(models.edited.checkpoint, device=models.device)  # uncached: its weights are changed
    unet, drawn = drawer.pipeline.unet, models.progress
    bank = _bank(attack, models)
    student = build_unet(models.edited.checkpoint, models.device or torch.device("cpu"))
    for place, learning_rate in enumerate(attack.learning_rates):

        def look(steps: int, changes: Mapping[str, torch.Tensor], place: int = place) -> None:
            with changed(unet, changes):
                name = f"draw after {steps} steps"
                pictures = drawer.images(attack.asked, attack.sampling, progress=drawn, name=name)
            np.save(folder / f"{place}-{steps}.npy", pictures)

        with contextlib.suppress(Diverged, InputError):  # the latter: pictures that are no numbers any more
            _fine_tune(student, bank, learning_rate, attack, models, look)


def _fine_tune(
    student: torch.nn.Module,
    bank: Bank,
    learning_rate: float,
    attack: Relearning,
    models: Models,
    look: Watch,
) -> None:
    """Train the edited U-Net on the base's pictures, showing it to `look`; it is then as before."""
    import torch

    from compiler.conditioning import encode
    from compiler.distil import DistilSettings, distil
    from compiler.precision import rounds
    from compiler.selections import select
    from compiler.terms import Term
    from compiler.text import TextEncoder

    edited, device = models.edited.checkpoint, models.device or torch.device("cpu")
    examples = torch.stack([torch.arange(len(bank)), bank.column("prompt")], dim=1)
    term = Term("relearn", bank, examples, lambda rows: bank.take("noise", rows), 1.0, BATCH)
    names, bfloat16 = ("relearn",), rounds("auto", device)
    settings = DistilSettings(max(attack.looks), learning_rate, attack.seed, names, bfloat16=bfloat16)
    prompts = encode(TextEncoder.from_checkpoint(edited, device), bank.prompts, edited)
    targets = select(edited.weights("unet").entries, SELECTION)
    with models.progress.task("fine-tune", 3 * BATCH * settings.steps) as task:
        distil(student, targets, prompts, [term], settings, task.advance, look, attack.looks)


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


def _read(attack: Relearning, folder: Path) -> dict[tuple[float, int], Images]:
    import numpy as np

    return {
        (learning_rate, steps): np.load(path, allow_pickle=False)
        for place, learning_rate in enumerate(attack.learning_rates)
        for steps in attack.looks
        if (path := folder / f"{place}-{steps}.npy").is_file()
    }
