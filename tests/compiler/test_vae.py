from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compiler.checkpoint import Checkpoint
from compiler.vae import Autoencoder, open_picture
from editspec.errors import InputError


def test_latents_and_pictures_are_those_of_the_stock_pipeline(tiny_checkpoint: Path) -> None:
    from diffusers import AutoencoderKL
    from diffusers.image_processor import VaeImageProcessor

    vae = AutoencoderKL.from_pretrained(tiny_checkpoint / "vae")
    found = Autoencoder(Checkpoint.open(tiny_checkpoint))
    assert found.size == (64, 64)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    with torch.no_grad():
        wanted = (
            vae.encode(VaeImageProcessor().preprocess(picture)).latent_dist.mean * vae.config.scaling_factor
        )
        latent = found.encode([picture, picture])
        torch.testing.assert_close(latent, wanted.expand(2, -1, -1, -1), atol=1e-5, rtol=1e-4)
        decoded = VaeImageProcessor().postprocess(vae.decode(wanted / vae.config.scaling_factor).sample)[0]
    gap = np.abs(np.asarray(found.decode(latent)[0], np.int16) - np.asarray(decoded, np.int16))
    assert gap.max() <= 1


def test_a_picture_of_another_shape_is_fitted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "wide.png")
    latent = Autoencoder(Checkpoint.open(tiny_checkpoint)).encode([open_picture(tmp_path / "wide.png")])
    assert latent.shape == (1, 4, 8, 8)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(InputError, match="no readable picture"):
        open_picture(tmp_path / "x.png")
