"""The frozen base as the teacher of distilled edits: its U-Net, its prompts, its banks from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.bank import Bank, build_bank, join, load_bank
from compiler.bank_request import BankRequest
from compiler.conditioning import Conditioning, encode, encode_unconditional
from compiler.device import choose
from compiler.sampling import load_scheduler
from compiler.seeds import reproducible
from compiler.unet import build_unet
from compiler.versions import library_versions
from editspec.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from compiler.checkpoint import Checkpoint
    from compiler.passes import PassContext
    from compiler.sampling import Scheduler


class Teacher:
    """Made for one run of a pass. Once all banks are there, the student may take `unet` and train it."""

    def __init__(self, context: PassContext) -> None:
        self._context = context

    @property
    def seed(self) -> int:
        """The build's seed."""
        return self._context.seed

    @cached_property
    def unet(self) -> nn.Module:
        """The base's U-Net, fp32, on the build's device; without upstream changes."""
        return build_unet(self._context.checkpoint, self._context.device)

    @cached_property
    def scheduler(self) -> Scheduler:
        """The base's scheduler."""
        return load_scheduler(self._context.checkpoint)

    @cached_property
    def unconditional(self) -> Conditioning:
        """The one row that the unconditional branch reads."""
        return encode_unconditional(self._context.text(), self._context.checkpoint)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """A row for each prompt."""
        return encode(self._context.text(), prompts, self._context.checkpoint)

    def refuse_cut_prompts(self, pointer: str, prompts: Sequence[str]) -> None:
        """Raise InputError where a prompt is longer than the window: the stock pipeline would cut it."""
        text = self._context.text()
        for prompt in prompts:
            tokens = text.token_count(prompt)
            if tokens > text.window:
                what = f"the prompt {prompt!r} takes {tokens} tokens; the base reads {text.window}"
                raise InputError(pointer, what, "choose shorter words")

    def banks(self, requests: Sequence[BankRequest]) -> tuple[Bank, int]:
        """All banks joined, in order, and how many of the first rows belong to the first."""
        found = [self.bank(request) for request in requests]
        return join(found), len(found[0])

    def bank(self, request: BankRequest) -> Bank:
        """The bank of `request` on this base: from the stage cache, or sampled now and stored there."""
        context = self._context
        key = context.cache.key(
            {
                "stage": "bank",
                "request": request.as_dict(),
                "base": _sampling_files(context.checkpoint),
                "libraries": library_versions(),
                "device": choose(context.device.type).device_class,
            }
        )
        stored = context.cache.get(key)
        if stored is None:
            stored = context.cache.put(key, lambda folder: self._sample(request, folder))
        return load_bank(stored)

    def _sample(self, request: BankRequest, folder: Path) -> None:
        evals = request.evals(self.scheduler.config)
        with reproducible(), self._context.progress.task("sample the bank", evals) as task:
            build_bank(
                self.unet, self.scheduler, self.encode, self.unconditional, request, folder, task.advance
            )


def _sampling_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """Digests of the files that latents depend on: all but the image side and the papers."""
    image_side = ("vae", "safety_checker", "feature_extractor", "image_encoder")
    return {
        path: digest
        for path, digest in checkpoint.digests().items()
        if path in ("model_index.json", "vae/config.json")
        or ("/" in path and not path.startswith(tuple(f"{part}/" for part in image_side)))
    }
