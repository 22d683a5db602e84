"""diffusers' tensor names -> the original latent-diffusion (LDM) names, which A1111 and ComfyUI read.

The inverse of diffusers' `convert_ldm_unet_checkpoint` and its kin, for any number of levels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = {
    "sd1": "cond_stage_model.transformer.text_model.",
    "sdxl": "conditioner.embedders.0.transformer.text_model.",
}
OPEN_CLIP_PREFIX = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}

#: The parts of a matrix that open_clip keeps as one, in their order.
IN_PROJ = ("q_proj", "k_proj", "v_proj")


_UNET_FIXED = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",  # as diffusers itself wrote them until 0.15
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_OPEN_CLIP = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("text_projection.weight", "text_projection"),
    ("final_layer_norm.", "ln_final."),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.", ".attn."),
)


def unet_name(name: str, config: Mapping[str, Any], names: Collection[str]) -> str | None:
    """LDM's name of a U-Net tensor; None where LDM has none. `names` are all of the U-Net's own."""
    layers = config.get("layers_per_block", 2)
    if not isinstance(layers, int):
        return None  # LDM counts blocks by one number of layers
    stem, _, kind = name.rpartition(".")
    if stem in _UNET_FIXED:
        return f"{UNET_PREFIX}{_UNET_FIXED[stem]}.{kind}"
    per_block = layers + 1
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        side, block, part, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        place = "input_blocks" if side == "down" else "output_blocks"
        first = block * per_block + (1 if side == "down" else 0)
        if part == "resnets":
            inner = _renamed(rest, _RESNET)
            return None if inner is None else f"{UNET_PREFIX}{place}.{first + number}.0.{inner}"
        if part == "attentions":
            return f"{UNET_PREFIX}{place}.{first + number}.1.{rest}"
        rest = rest.removeprefix("conv.")
        if part == "downsamplers":
            return f"{UNET_PREFIX}{place}.{first + layers}.0.op.{rest}"
        if part == "upsamplers":  # it follows the last resnet, and the attention where there is one
            attends = any(other.startswith(f"up_blocks.{block}.attentions.") for other in names)
            return f"{UNET_PREFIX}{place}.{first + layers}.{2 if attends else 1}.conv.{rest}"
        return None
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        if found[1] == "attentions":
            return f"{UNET_PREFIX}middle_block.{2 * int(found[2]) + 1}.{found[3]}"
        inner = _renamed(found[3], _RESNET)
        return None if inner is None else f"{UNET_PREFIX}middle_block.{2 * int(found[2])}.{inner}"
    return None


def vae_name(name: str, config: Mapping[str, Any]) -> str | None:
    """LDM's name of a VAE tensor; None where LDM has none."""
    levels = len(config["block_out_channels"])
    if re.fullmatch(r"(post_)?quant_conv\.\w+|(en|de)coder\.conv_(in|out)\.\w+", name):
        return VAE_PREFIX + name
    if found := re.fullmatch(r"(encoder|decoder)\.conv_norm_out\.(\w+)", name):
        return f"{VAE_PREFIX}{found[1]}.norm_out.{found[2]}"
    if found := re.fullmatch(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        level = int(found[2]) if found[1] == "encoder.down" else levels - 1 - int(found[2])
        part, rest = found[3], found[5].replace("conv_shortcut", "nin_shortcut")
        if part == "resnets":
            return f"{VAE_PREFIX}{found[1]}.{level}.block.{found[4]}.{rest}"
        sampler = {"downsamplers": "downsample", "upsamplers": "upsample"}.get(part)
        return None if sampler is None else f"{VAE_PREFIX}{found[1]}.{level}.{sampler}.{rest}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        side, number = found[1], int(found[3]) + 1
        if found[2] == "resnets":
            rest = found[4].replace("conv_shortcut", "nin_shortcut")
            return f"{VAE_PREFIX}{side}.mid.block_{number}.{rest}"
        inner = _renamed(found[4], _VAE_ATTENTION)
        return None if inner is None else f"{VAE_PREFIX}{side}.mid.attn_{number}.{inner}"
    return None


def is_vae_attention(ldm_name: str) -> bool:
    """Whether LDM keeps this matrix as a 1x1 convolution, (out, in, 1, 1)."""
    return re.search(r"\.mid\.attn_\d+\.(q|k|v|proj_out)\.weight$", ldm_name) is not None


def open_clip_name(short: str) -> str:
    """open_clip's name, without prefix, of a CLIP tensor named without `text_model.`.

    The three parts of an attention's input come out as `in_proj_weight` or `in_proj_bias`, all the same.
    """
    for ours, theirs in _OPEN_CLIP:
        short = short.replace(ours, theirs)
    return re.sub(r"\.attn\.[qkv]_proj\.(weight|bias)$", r".attn.in_proj_\1", short)


def _renamed(rest: str, table: Mapping[str, str]) -> str | None:
    """`norm1.weight` by the table {"norm1": "in_layers.0"} -> `in_layers.0.weight`."""
    stem, _, kind = rest.rpartition(".")
    return f"{table[stem]}.{kind}" if stem in table else None


def in_order(names: Sequence[str]) -> list[str]:
    """The parts of one open_clip matrix in its order: queries, keys, values."""
    return sorted(names, key=lambda name: next(i for i, part in enumerate(IN_PROJ) if part in name))
