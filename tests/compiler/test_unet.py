"""Activations of large models are recomputed in training: another way to the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.checkpoint import Checkpoint
from compiler.conditioning import encode
from compiler.distil import trainable
from compiler.sampling import predict
from compiler.seeds import gaussian, reproducible
from compiler.selections import select
from compiler.text import TextEncoder
from compiler.unet import build_unet, recomputes, recomputing, training_memory

SD1 = {"sample_size": 64, "in_channels": 4, "block_out_channels": (320, 640, 1280, 1280)}
SD2 = {**SD1, "sample_size": 96}
SDXL = {"sample_size": 128, "in_channels": 4, "block_out_channels": (320, 640, 1280)}


def test_sdxl_recomputes_its_activations_and_smaller_models_keep_them() -> None:
    assert [recomputes(config) for config in (SD1, SD2, SDXL)] == [False, False, True]


def test_recomputing_shows_in_the_memory_that_a_plan_asks_for() -> None:
    kept, recomputed = (training_memory({}, {**SDXL, "sample_size": size}, ()) for size in (104, 128))
    assert recomputed < kept, "the larger pictures take less"


def _gradients(checkpoint: Checkpoint, *, on: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a prediction's mean square, and how often a ResNet block ran."""
    unet = build_unet(checkpoint)
    prompts = encode(TextEncoder.from_checkpoint(checkpoint), ["a star", "a moon"], checkpoint)
    names = select(checkpoint.weights("unet").entries, "full")
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    for name, module in unet.named_modules():
        if type(module).__name__ == "ResnetBlock2D" and name:
            module.register_forward_pre_hook(count)  # recomputing may stop before a block ends
    with reproducible(), trainable(unet, names) as (weights, _), recomputing(unet, on):
        found = predict(unet, gaussian((2, 4, 8, 8), 1, "x"), torch.tensor([10.0, 900.0]), prompts)
        found.square().mean().backward()
        return {
            name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None
        }, runs


@pytest.mark.parametrize("fixture", ["tiny_checkpoint", "tiny_checkpoint_sdxl"])
def test_recomputed_activations_give_the_same_gradients_to_the_last_bit(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    checkpoint = Checkpoint.open(folder)
    (kept, once), (recomputed, twice) = (_gradients(checkpoint, on=on) for on in (False, True))
    # All but the middle's first, which diffusers does not recompute, ran again; in eval mode too.
    assert twice == 2 * once - 1
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_a_module_is_left_as_it_was(tiny_checkpoint: Path) -> None:
    unet: Any = build_unet(Checkpoint.open(tiny_checkpoint))
    with recomputing(unet, True):
        assert unet.is_gradient_checkpointing
        with recomputing(unet, False):
            assert not unet.is_gradient_checkpointing
        assert unet.is_gradient_checkpointing
    assert not unet.is_gradient_checkpointing
