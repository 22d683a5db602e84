"""A direction in h-space at runtime: vectors added by hooks while sampling, as published (Li et al. 2024)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from compiler.baselines import Baseline

if TYPE_CHECKING:
    import torch

    from compiler.sampling import Combine


class _Guided(Baseline):
    """Plain classifier-free guidance with a hook."""

    def combine(self, guidance_scale: float) -> Combine:
        from compiler.sampling import classifier_free_guidance

        return lambda step: classifier_free_guidance(step.uncond, step.cond, guidance_scale)


@dataclass(frozen=True)
class MidBlockVector(_Guided):
    """`vector` is added to the mid block's output: (channels,), or (channels, h, w) at its resolution.

    The published use is `halves="text"`: only the second half of each batch of classifier-free guidance.
    """

    vector: torch.Tensor
    strength: float = 1.0
    halves: Literal["text", "both"] = "text"

    @contextlib.contextmanager
    def hooked(self, unet: torch.nn.Module) -> Iterator[None]:
        import torch

        added = self.strength * (self.vector[:, None, None] if self.vector.ndim == 1 else self.vector)

        def add(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
            moved = output + added.to(output)
            if self.halves == "both":
                return moved
            return torch.cat([output[: len(output) // 2], moved[len(output) // 2 :]])

        handle = unet.get_submodule("mid_block").register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class SiteVectors(_Guided):
    """`vectors`, by tensor name, are added in both halves to what the layers of these tensors give.

    Those of biases as they are, those of value matrices times what `gate` (text width,) gives on each token.
    """

    vectors: Mapping[str, torch.Tensor]
    strength: float = 1.0
    gate: torch.Tensor | None = None

    @contextlib.contextmanager
    def hooked(self, unet: torch.nn.Module) -> Iterator[None]:
        import torch

        handles = []
        for name, vector in self.vectors.items():

            def add(
                module: torch.nn.Module, given: Any, output: torch.Tensor, v: torch.Tensor = vector
            ) -> torch.Tensor:
                channels_first = isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm)
                return output + self.strength * (v[:, None, None] if channels_first else v).to(output)

            def add_gated(
                module: torch.nn.Module, given: Any, output: torch.Tensor, v: torch.Tensor = vector
            ) -> torch.Tensor:
                assert self.gate is not None
                opened = given[0] @ self.gate.to(given[0])
                moved: torch.Tensor = output + self.strength * opened[..., None] * v.to(output)
                return moved

            layer, kind = name.rsplit(".", 1)
            hook = add if kind == "bias" else add_gated
            handles.append(unet.get_submodule(layer).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
