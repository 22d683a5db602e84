"""What one eval of a U-Net costs, from its tensor shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.device import Device
    from compiler.safetensors_file import TensorEntry

# A small U-Net is bound by the count of its layers, not by arithmetic: seconds for one weight's kernel,
# shared by the samples of a batch.
KERNEL_SECONDS = 4e-6


def eval_flops(entries: Mapping[str, TensorEntry], config: Mapping[str, Any], window: int) -> float:
    """FLOP of one sample through the U-Net once, at the size it was trained on; `window` in text tokens.

    Counts Linear, Conv2d and attention. Stable Diffusion 1.4 at 512 px: 0.80e12 (METHODS.md, notation).
    """
    total = 0.0
    for name, entry in entries.items():
        if not name.endswith(".weight") or len(entry.shape) not in (2, 4):
            continue
        positions = _positions(name, config)
        reads_text = re.search(r"\.attn2\.to_[kv]\.", name) is not None
        total += 2 * prod(entry.shape) * (window if reads_text else positions)
        if name.endswith((".attn1.to_q.weight", ".attn2.to_q.weight")):
            keys = positions if ".attn1." in name else window
            total += 4 * positions * keys * entry.shape[0]
    return total


def eval_seconds(checkpoint: Checkpoint, device: Device) -> float:
    """Estimated seconds of one eval of this checkpoint's U-Net on `device`, in batches."""
    entries = checkpoint.weights("unet").entries
    window = int(checkpoint.config("text_encoder").get("max_position_embeddings", 77))
    return eval_flops(entries, checkpoint.config("unet"), window) / device.flops + KERNEL_SECONDS * len(
        entries
    )


def _positions(name: str, config: Mapping[str, Any]) -> int:
    """Pixels of the feature map that the layer `name` writes; 1 for layers that see the timestep only."""
    if name.startswith(("time_embedding.", "add_embedding.")) or ".time_emb_proj." in name:
        return 1
    levels = len(config["block_out_channels"])
    level = 0
    block = re.match(r"(down|up)_blocks\.(\d+)\.", name)
    if name.startswith("mid_block."):
        level = levels - 1
    elif block and block[1] == "down":
        level = int(block[2]) + (1 if ".downsamplers." in name else 0)
    elif block:
        level = levels - 1 - int(block[2]) - (1 if ".upsamplers." in name else 0)
    size = config.get("sample_size") or 64
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return max(1, (int(height) >> level) * (int(width) >> level))
