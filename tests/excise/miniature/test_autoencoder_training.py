"""The decoder is trained on alone: what latents mean stays, and with it every edit of the U-Net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from excise.miniature.assets import MODEL
from excise.miniature.draw import draw
from excise.miniature.scene import sample_scene
from excise.miniature.training import pack as packing
from excise.miniature.training.autoencoder import furthest, load_autoencoder, train_decoder

SEED, COUNT = 9, 40


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.stack([np.asarray(draw(sample_scene(SEED, i), SEED, i)) for i in range(COUNT)])


def test_training_the_decoder_leaves_the_encoder_as_it_was(pixels: np.ndarray, tmp_path: Path) -> None:
    before = load_autoencoder(MODEL / "vae")
    after = train_decoder(pixels, SEED, MODEL / "vae", tmp_path / "vae-more", steps=2, batch=4)
    old, new = before.state_dict(), after.state_dict()
    moved = {name.split(".")[0] for name, value in old.items() if not torch.equal(value, new[name].float())}
    assert moved == {"decoder", "post_quant_conv"}
    assert after.config.scaling_factor == before.config.scaling_factor


def test_the_autoencoder_trained_furthest_is_taken_and_the_shipped_one_where_none_was(tmp_path: Path) -> None:
    assert furthest(tmp_path) == MODEL / "vae"
    for name in ("vae", "vae-more"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert furthest(tmp_path) == tmp_path / name


def test_a_decoder_trained_on_is_packed_beside_the_shipped_unet(tmp_path: Path) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    for path in (data / "model/vae", data / "model/unet", work / "vae-more"):
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
        (path / "weights.safetensors").write_bytes(str(path).encode())
    packing.pack(work, data)
    assert (data / "model/vae/weights.safetensors").read_bytes() == str(work / "vae-more").encode()
    assert (data / "model/unet/weights.safetensors").read_bytes() == str(data / "model/unet").encode()
