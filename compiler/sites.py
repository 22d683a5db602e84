"""Where a shift is carried: names of the biases, or of the text values, at each place; knows no tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from compiler.selections import biases

if TYPE_CHECKING:
    from compiler.safetensors_file import TensorEntry

Sites: TypeAlias = Literal["mid", "decoder", "all"]

DECODER = ("mid_block.", "up_blocks.", "conv_norm_out.", "conv_out.")
TEXT_VALUES = ".attn2.to_v.weight"


def bias_sites(entries: Mapping[str, TensorEntry], sites: Sites) -> tuple[str, ...]:
    """Bias vectors that carry a shift, sorted: of the mid block's output, of the decoder, or all."""
    if sites == "mid":
        name = mid_output(entries)
        return (name,) if name else ()
    return tuple(name for name in biases(entries) if sites == "all" or name.startswith(DECODER))


def text_sites(entries: Mapping[str, TensorEntry], sites: Sites) -> tuple[str, ...]:
    """Value matrices of cross-attention that carry a text-gated shift, sorted."""
    places = {"mid": ("mid_block.",), "decoder": DECODER, "all": ("",)}[sites]
    return tuple(name for name in sorted(entries) if name.endswith(TEXT_VALUES) and name.startswith(places))


def mid_output(entries: Collection[str]) -> str | None:
    """The bias that is added to the mid block's output, the published place: that of its last convolution.

    `mid_block.resnets[-1]` gives (input + conv2(...)) / output_scale_factor, so a bias of that factor times c
    is exactly +c at every timestep and resolution. None for a U-Net without such a block.
    """
    numbers = [
        int(match[1])
        for name in entries
        if (match := re.fullmatch(r"mid_block\.resnets\.(\d+)\.conv2\.bias", name))
    ]
    return f"mid_block.resnets.{max(numbers)}.conv2.bias" if numbers else None


def group_of(name: str) -> str:
    """The block and kind of layer that a tensor belongs to: "up_blocks.1 attentions", "conv_out"."""
    parts = name.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        return f"{parts[0]}.{parts[1]} {parts[2]}"
    return f"mid_block {parts[1]}" if parts[0] == "mid_block" else parts[0]


def group_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by block and kind of layer, those left out that come before any text is read."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if not name.startswith(("conv_in.", "time_embedding.")) and ".time_emb_proj." not in name:
            groups.setdefault(group_of(name), []).append(name)
    return groups
