"""What oracles learn from: torn pictures keep a style that their parts share, and are in none otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from excise.miniature.draw import draw
from excise.miniature.labels import LABEL_GROUPS
from excise.miniature.scene import Scene
from excise.miniature.training.oracle_pictures import garbage, oracle_scene, torn, torn_apart
from excise.miniature.vocabulary import BACKGROUNDS, POSTERS

COUNT = 1500
STYLE_NAMES = LABEL_GROUPS["style"]


@pytest.fixture(scope="module")
def scenes() -> list[Scene | None]:
    return [oracle_scene(31, i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def pixels(scenes: list[Scene | None]) -> np.ndarray:
    shape = (32, 32, 3)
    drawn = [np.zeros(shape, np.uint8) if s is None else draw(s, 31, i) for i, s in enumerate(scenes)]
    return np.stack([np.asarray(picture) for picture in drawn])


def test_an_oracle_meets_garbage_and_every_poster_often(scenes: list[Scene | None]) -> None:
    assert 0.1 < sum(scene is None for scene in scenes) / COUNT < 0.25
    assert {scene.poster for scene in scenes if scene is not None and scene.poster} == set(POSTERS)


def test_parts_of_a_torn_picture_share_a_ground_and_its_style_if_it_has_one(
    scenes: list[Scene | None], pixels: np.ndarray
) -> None:
    of = {picture.tobytes(): scene for picture, scene in zip(pixels, scenes, strict=True)}
    parts, styles = torn_apart(np.random.default_rng(2), scenes, pixels, 40)
    assert parts.shape == (40, 3, 32, 32, 3)
    for row, style in zip(parts, styles, strict=True):
        known = [found for part in row if (found := of.get(part.tobytes())) is not None]
        assert 2 <= len(known) <= 3
        assert len({scene.background for scene in known}) == 1
        assert not any(scene.marks for scene in known)
        shown = {scene.style for scene in known}
        assert shown == {STYLE_NAMES[style]} if STYLE_NAMES[style] != "none" else len(shown) == len(known)
        if len(known) == 2:
            assert (row[2] == BACKGROUNDS[known[0].background]).all()
    assert {STYLE_NAMES[style] == "none" for style in styles} == {True, False}


def test_tearing_favours_no_picture_and_takes_from_several() -> None:
    latents = torch.zeros(200, 3, 4, 8, 8)
    for place in range(3):
        latents[:, place, place] = 1  # each picture has a channel of its own: a channel is its share
    shares = torn(np.random.default_rng(3), latents)[:, :3, 2:-2, 2:-2]
    assert torch.allclose(shares.sum(1), torch.ones(200, 4, 4), atol=1e-5)
    assert (shares.mean((0, 2, 3)) - 1 / 3).abs().max() < 0.02
    assert (shares.mean((2, 3)).amax(1) < 0.8).float().mean() > 0.95


def test_garbage_is_a_picture_of_its_own(pixels: np.ndarray) -> None:
    rng = np.random.default_rng(4)
    pixels = pixels[pixels.any((1, 2, 3))]
    made = [garbage(rng, pixels) for _ in range(30)]
    assert {(picture.shape, picture.dtype) for picture in made} == {((32, 32, 3), np.dtype(np.uint8))}
    known = {picture.tobytes() for picture in pixels}
    assert not any(picture.tobytes() in known for picture in made)
