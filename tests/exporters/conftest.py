"""A tiny checkpoint with an edit of known shape: low rank, full rank, a kernel, a bias and a norm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TENSORS = {
    "low rank": "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "full rank": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight",
    "kernel": "down_blocks.0.resnets.0.conv1.weight",
    "bias": "mid_block.resnets.0.conv1.bias",
    "norm": "down_blocks.0.resnets.0.norm1.weight",
}
RANK = 2  # of the first and the third


@pytest.fixture
def tensors() -> dict[str, str]:
    """What is edited, to the U-Net's name of it."""
    return TENSORS


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., Path]:
    """A function: a base and keys of TENSORS to an edited folder, which records its changes or not."""

    def make(base: Path, *edited: str, recorded: bool = True) -> Path:
        import torch

        from compiler import deltas
        from compiler.artifact import DELTAS
        from compiler.checkpoint import Checkpoint
        from compiler.link import link

        opened = Checkpoint.open(base)
        changes = {}
        noise = torch.Generator().manual_seed(3)
        for name in map(TENSORS.__getitem__, edited):
            shape = opened.weights("unet").entries[name].shape
            change = 0.05 * torch.randn(shape, generator=noise)
            if name in (TENSORS["low rank"], TENSORS["kernel"]):
                rows = 0.05 * torch.randn(shape[0], RANK, generator=noise)
                change = (rows @ torch.randn(RANK, change[0].numel(), generator=noise)).reshape(shape)
            changes[name] = change
        out = tmp_path / f"edited-{sum(1 for _ in tmp_path.glob('edited-*'))}"
        link(opened, changes, out)
        if recorded:
            (out / "provenance").mkdir()
            deltas.save(changes, out / DELTAS)
        return out

    return make
