"""Pictures with a runtime original at work, from the very noise that `compiler.generate` starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compiler.baselines import Baseline, sample_with
from compiler.conditioning import encode, encode_unconditional
from compiler.generate import Draw, Sampler, Sampling
from compiler.seeds import reproducible
from compiler.text import TextEncoder
from compiler.unet import add_deltas, config_of, latent_shape

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.generate import Images


class Studio:
    """One checkpoint, loaded once; draws pictures with originals, or with weights that deltas have changed.

    With `ClassifierFreeGuidance` and no deltas it draws what `Sampler` draws.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device | None = None) -> None:
        self.checkpoint = checkpoint
        self.device = device or torch.device("cpu")
        self._sampler = Sampler(checkpoint, device=device)

    @cached_property
    def _text(self) -> TextEncoder:
        return TextEncoder.from_checkpoint(self.checkpoint, self.device)

    def images(
        self,
        baseline: Baseline,
        draws: Sequence[Draw],
        sampling: Sampling,
        deltas: Mapping[str, Tensor] | None = None,
    ) -> Images:
        """uint8 (len(draws), height, width, 3), in order; `deltas` are in the U-Net only meanwhile."""
        import numpy as np

        unet, changed = self._sampler.pipeline.unet, dict(deltas or {})
        before = {name: unet.get_parameter(name).detach().clone() for name in changed}
        batch = self._sampler.batch
        found = []
        try:
            add_deltas(unet, changed)
            for start in range(0, len(draws), batch):
                found.append(self._drawn(baseline, draws[start : start + batch], sampling))
        finally:
            with torch.no_grad():
                for name, weight in before.items():
                    unet.get_parameter(name).copy_(weight)
        return np.concatenate(found)

    @torch.no_grad()
    def _drawn(self, baseline: Baseline, draws: Sequence[Draw], sampling: Sampling) -> Images:
        import numpy as np

        pipeline: Any = self._sampler.pipeline
        generators = [torch.Generator("cpu").manual_seed(draw.seed) for draw in draws]
        shape = (1, *latent_shape(config_of(pipeline.unet)))
        noise = torch.cat([torch.randn(shape, generator=one) for one in generators]).to(self.device)
        with reproducible():
            sampled = sample_with(
                baseline,
                pipeline.unet,
                pipeline.scheduler,
                lambda prompts: encode(self._text, prompts, self.checkpoint),
                noise,
                encode_unconditional(self._text, self.checkpoint),
                encode(self._text, [draw.prompt for draw in draws], self.checkpoint),
                steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                generators=generators,
            )
            scaled = sampled.latents / pipeline.vae.config.scaling_factor
            decoded = pipeline.vae.decode(scaled, return_dict=False)[0]
        pixels = pipeline.image_processor.postprocess(decoded, output_type="np")
        images: Images = (pixels * 255).round().astype(np.uint8, order="C")
        return images
