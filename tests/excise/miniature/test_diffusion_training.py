"""The diffusion training's batches: emphasis meets captions more often, each with its own picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from excise.miniature.architecture import build_tokenizer
from excise.miniature.training.diffusion import (
    BRANCHES,
    CAPTION_VARIANTS,
    Captions,
    caption_world,
    draw_batch,
    holding,
)
from excise.miniature.training.pack import _furthest
from excise.miniature.vocabulary import GROUPS, vocabulary

SHAPE = (24, 4, 8, 8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"), vocabulary())


@pytest.fixture(scope="module")
def captions(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Captions:
    return caption_world(tokenizer, 5, 300, tmp_path_factory.mktemp("world") / "captions.npz")


def test_captions_that_hold_a_word_are_found_in_every_wording(
    captions: Captions, tokenizer: CLIPTokenizer
) -> None:
    found = holding(captions.ids, GROUPS, tokenizer)
    assert found.shape == (CAPTION_VARIANTS, 300)
    assert found.any(1).all()
    for variant, row in np.argwhere(found):
        words = tokenizer.decode(captions.ids[variant, row], skip_special_tokens=True).split()
        assert set(words) & set(GROUPS)


def test_emphasised_captions_fill_their_share_of_a_batch_and_keep_their_scenes(
    captions: Captions, tokenizer: CLIPTokenizer
) -> None:
    held = holding(captions.ids, GROUPS, tokenizer)
    told = [(np.argwhere(held), 6)]
    variants, rows, when, noise = draw_batch(np.random.default_rng(1), np.arange(300), told, SHAPE)
    assert held[variants[:6], rows[:6]].all()
    assert not held[variants, rows].all()
    assert noise.shape == SHAPE
    assert len(when) == len(rows) == len(variants) == SHAPE[0]


def test_a_batch_without_emphasis_is_drawn_from_the_given_scenes_alone(captions: Captions) -> None:
    scenes = np.flatnonzero(captions.without_unseen)
    _, rows, when, _ = draw_batch(np.random.default_rng(2), scenes, [], SHAPE)
    assert set(rows) <= set(scenes)
    assert ((when >= 0) & (when < 1000)).all()


def test_every_branch_leaves_room_for_ordinary_captions() -> None:
    for branch in BRANCHES.values():
        assert sum(count for _, count in branch.emphasis) < 48 // 2


def test_the_last_finished_stage_of_a_model_is_packed(tmp_path: Path) -> None:
    for stage in ("base", "base-more", "base-told"):
        (tmp_path / stage / "unet").mkdir(parents=True)
        assert _furthest(tmp_path, "base") == tmp_path / stage
