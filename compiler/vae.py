"""Pictures to latents and back, with the base's own autoencoder: for memorised images and for comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compiler.checkpoint import UNET
from compiler.generate import quiet
from compiler.unet import latent_shape
from editspec.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from compiler.checkpoint import Checkpoint


class Autoencoder:
    """The VAE of a checkpoint in fp32. Latents are scaled as the U-Net reads them."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        from diffusers import AutoencoderKL

        try:
            with quiet():
                self._vae: Any = AutoencoderKL.from_pretrained(
                    checkpoint.root / "vae",
                    variant=checkpoint.variant,
                    torch_dtype=torch.float32,
                    use_safetensors=True,
                    local_files_only=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            where = str(checkpoint.root / "vae")
            raise InputError(where, f"diffusers cannot load it: {error}", "restore the files") from error
        self._vae.requires_grad_(False).eval().to(device)
        self._device = device
        config = self._vae.config
        self._scale = float(config.scaling_factor)
        self._shift = float(getattr(config, "shift_factor", None) or 0.0)
        _, height, width = latent_shape(checkpoint.config(UNET))
        factor = 2 ** (len(config.block_out_channels) - 1)
        self.size = (width * factor, height * factor)
        """(width, height) in pixels of a picture at the resolution the U-Net was trained for."""

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image]) -> Tensor:
        """Latents (n, channels, h, w) of pictures, fitted to `size`: the mean of the posterior, no draw."""
        import numpy as np
        from PIL import ImageOps

        found = []
        for picture in pictures:
            fitted = ImageOps.fit(picture.convert("RGB"), self.size)
            pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
            mean = self._vae.encode(pixels.to(self._device)).latent_dist.mean
            found.append((mean - self._shift) * self._scale)
        return torch.cat(found)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image]:
        """Pictures of latents (n, channels, h, w)."""
        from PIL import Image as images

        found = []
        for latent in latents:
            pixels = self._vae.decode(latent[None].to(self._device) / self._scale + self._shift).sample[0]
            whole = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            found.append(images.fromarray(whole.permute(1, 2, 0).cpu().numpy()))
        return found


def open_picture(path: Path) -> Image:
    """A picture from disk, pixels loaded. Raises InputError for a file that is none, or a huge one."""
    from PIL import Image as images

    try:
        picture = images.open(path)
        picture.load()
    except (OSError, ValueError, images.DecompressionBombError) as error:
        raise InputError(str(path), f"is no readable picture: {error}", "give a PNG or JPEG file") from error
    return picture
