"""Stock modules with the fixed, positional signatures that a graph needs, and only its parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Unet(nn.Module):
    """SD 1 and 2: sample (n, c, h, w), scalar timestep, text (n, tokens, width) to a prediction."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        predicted: Tensor = self.unet(sample, timestep, text, return_dict=False)[0]
        return predicted


class UnetXl(nn.Module):
    """SDXL: the same with pooled text (n, d) and six sizes (n, 6)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: Tensor, timestep: Tensor, text: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Tensor:
        # The U-Net joins both to float32 sines of `time_ids`; ONNX joins equal types only.
        added = {"text_embeds": text_embeds.float(), "time_ids": time_ids}
        predicted: Tensor = self.unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False)[0]
        return predicted


class Decoder(nn.Module):
    """Latents (n, c, h, w), already divided by the scaling factor, to pixels in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        del vae.encoder, vae.quant_conv
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return pixels


class Encoder(nn.Module):
    """Pixels in [-1, 1] to the moments of the latents' distribution: means, then log variances."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        del vae.decoder, vae.post_quant_conv
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        moments: Tensor = self.vae.encode(sample, return_dict=False)[0].parameters
        return moments


class TextEncoder(nn.Module):
    """A CLIP text encoder: ids (n, tokens) to `outputs`, in the order in which pipelines index them."""

    def __init__(self, encoder: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.outputs = outputs

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        found = self.encoder(input_ids, output_hidden_states=True, return_dict=True)
        return tuple(
            found.hidden_states[int(name.rpartition(".")[2])] if "hidden_states." in name else found[name]
            for name in self.outputs
        )
