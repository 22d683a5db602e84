from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compiler.baselines import ClassifierFreeGuidance
from compiler.baselines.hspace import MidBlockVector
from compiler.baselines.pictures import Studio
from compiler.baselines.published import PublishedSettings, learn_published
from compiler.checkpoint import Checkpoint
from compiler.conditioning import encode
from compiler.generate import Draw, Sampler, Sampling
from compiler.sampling import load_scheduler, predict
from compiler.seeds import gaussian
from compiler.text import TextEncoder
from compiler.unet import build_unet

DRAWS = [Draw("a star", 3), Draw("a red moon", 4)]
SAMPLING = Sampling(guidance_scale=4.0, steps=3)


def test_with_nothing_added_the_pictures_are_those_of_the_stock_pipeline(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    ours = Studio(checkpoint).images(ClassifierFreeGuidance(), DRAWS, SAMPLING)
    theirs = Sampler(checkpoint).images(DRAWS, SAMPLING, batch=2)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_changed_weights_are_there_for_their_pictures_alone(tiny_checkpoint: Path) -> None:
    studio = Studio(Checkpoint.open(tiny_checkpoint))
    plain = studio.images(ClassifierFreeGuidance(), DRAWS, SAMPLING)
    deltas = {"mid_block.resnets.1.conv2.bias": 3 * gaussian((64,), 1, "d")}
    folded = studio.images(ClassifierFreeGuidance(), DRAWS, SAMPLING, deltas)
    hook = MidBlockVector(deltas["mid_block.resnets.1.conv2.bias"], halves="both")
    assert np.abs(folded.astype(int) - studio.images(hook, DRAWS, SAMPLING).astype(int)).max() <= 1
    assert not np.array_equal(folded, plain)
    assert np.array_equal(studio.images(ClassifierFreeGuidance(), DRAWS, SAMPLING), plain)


def test_the_published_objective_reads_each_picture_under_its_own_prompt(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    unet, text = build_unet(checkpoint), TextEncoder.from_checkpoint(checkpoint)
    latents, settings = 0.5 * gaussian((2, 4, 8, 8), 2, "latents"), PublishedSettings(steps=1, batch=2)
    rows = encode(text, ["a house", "a star"], checkpoint)

    def first_loss(order: list[int]) -> float:
        scheduler = load_scheduler(checkpoint)
        return learn_published(unet, scheduler, latents, rows.rows(order), settings, 5).curve[0]

    own, one, other = first_loss([0, 1]), first_loss([0]), first_loss([1])
    assert first_loss([0, 0]) == one != own
    assert own + first_loss([1, 0]) == pytest.approx(one + other, abs=1e-5)


@pytest.mark.parametrize("spatial", [True, False])
def test_the_published_objective_learns_a_vector_that_predicts_the_noise_better(
    tiny_checkpoint: Path, spatial: bool
) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    unet, text = build_unet(checkpoint), TextEncoder.from_checkpoint(checkpoint)
    row = encode(text, ["a house"], checkpoint)
    latents = 0.5 * gaussian((6, 4, 8, 8), 2, "latents")
    settings = PublishedSettings(steps=30, batch=6, learning_rate=0.05, spatial=spatial)
    found = learn_published(unet, load_scheduler(checkpoint), latents, row, settings, 5)
    assert found.vector.shape == ((64, 4, 4) if spatial else (64,))
    assert found.evals == 3 * 30 * 6
    assert sum(found.curve[-5:]) < sum(found.curve[:5])
    with torch.no_grad():  # and the U-Net is as it was
        inputs = latents[:1], torch.tensor([5.0]), row
        assert torch.equal(predict(unet, *inputs), predict(build_unet(checkpoint), *inputs))
