"""A checkpoint's U-Net as a diffusers module, and whether it is one that can be sampled from prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from editspec.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from compiler.checkpoint import Checkpoint
    from compiler.safetensors_file import TensorEntry

# Tensors the size of its output that a ResNet and transformer block together keep for the backward pass.
ACTIVATIONS_KEPT = 50
# Of these with gradient checkpointing: the inputs of blocks alone; one block at a time is recomputed.
CHECKPOINTS_KEPT = 4
# Bytes of activations in one backward pass above which they are recomputed: more than SD 1 and 2 take.
ACTIVATION_ROOM = 6 << 30


def build_unet(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> nn.Module:
    """The frozen base U-Net in fp32 and eval mode (no dropout), with gradients off for every weight.

    Raises InputError where config and weights do not fit each other.
    """
    import torch
    from diffusers import UNet2DConditionModel

    config = checkpoint.config("unet")
    with torch.device("meta"):  # no time for an initialisation that is overwritten, no draw for it either
        unet: nn.Module = UNet2DConditionModel.from_config(config)
    weights = checkpoint.weights("unet")
    # A copy of each: the file's own memory map must never be written to by training.
    state = {name: weights.read(name).to(device, torch.float32, copy=True) for name in weights.entries}
    try:
        unet.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise InputError(
            str(checkpoint.root / "unet"),
            f"the weights do not fit config.json: {first[0].strip()}",
            "restore the files from where the checkpoint came from",
        ) from error
    unet.requires_grad_(False)
    return unet.eval()


def add_deltas(unet: nn.Module, deltas: Mapping[str, Tensor]) -> None:
    """Add fp32 changes, by tensor name, to the module's weights in place."""
    import torch

    weights = dict(unet.named_parameters())
    with torch.no_grad():
        for name, change in deltas.items():
            weights[name].add_(change.to(weights[name].device))


def config_of(unet: nn.Module) -> Mapping[str, Any]:
    """The configuration that a diffusers module carries."""
    config: Any = unet.config
    return cast("Mapping[str, Any]", config)


def latent_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width) of one latent at the resolution the U-Net was trained for."""
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


def unsuited(config: Mapping[str, Any]) -> str | None:
    """Why trajectories cannot be sampled with this U-Net alone, or None."""
    if config["in_channels"] != config.get("out_channels", config["in_channels"]):
        return (
            f"its U-Net reads {config['in_channels']} channels and gives {config['out_channels']}: "
            "an inpainting or image-to-image model, which cannot be sampled from a prompt alone"
        )
    if config.get("time_cond_proj_dim") is not None:
        return "its U-Net is distilled for guidance (time_cond_proj_dim), so it has no empty-prompt branch"
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        return "its U-Net reads class labels, which no prompt gives"
    return None


def training_memory(
    entries: Mapping[str, TensorEntry], config: Mapping[str, Any], targets: Sequence[str]
) -> int:
    """Estimated peak bytes of training the weights `targets`: all weights in fp32, four copies of these more.

    The copies are the start values, the gradients and Adam's two moments. Beside them stand the activations
    of the examples that share one backward pass.
    """
    weights = sum(entry.parameters for entry in entries.values())
    chosen = sum(entries[name].parameters for name in targets)
    return 4 * (weights + 4 * chosen) + examples_at_once(config) * _activation_bytes(config)


def examples_at_once(config: Mapping[str, Any]) -> int:
    """How many examples share one forward and backward: bounded memory, from latent size alone.

    64 at 8x8 latents, 2 at 64x64 (SD 1.x), 1 at 128x128 (SDXL); gradients of the parts add up.
    """
    _, height, width = latent_shape(config)
    return max(1, min(64, 8192 // (height * width)))


def recomputes(config: Mapping[str, Any]) -> bool:
    """Whether training keeps no activations but recomputes them, block by block: for SDXL at 1024 px.

    From sizes alone, so that plans know it and every device does the same. It takes a further forward for
    each backward, which evals (samples sent through the U-Net) do not count.
    """
    return examples_at_once(config) * _all_activation_bytes(config) > ACTIVATION_ROOM


@contextmanager
def recomputing(unet: nn.Module, on: bool) -> Iterator[None]:
    """Inside, a diffusers U-Net has gradient checkpointing on or off; then as it was.

    Its blocks ask for it and for gradients, not for training mode, so dropout stays off. The recomputed
    activations are the same numbers, and so are the gradients.
    """
    module: Any = unet
    before = bool(module.is_gradient_checkpointing)
    _switch(module, on)
    try:
        yield
    finally:
        _switch(module, before)


def _switch(module: Any, on: bool) -> None:
    if on:
        module.enable_gradient_checkpointing()
    else:
        module.disable_gradient_checkpointing()


def _activation_bytes(config: Mapping[str, Any]) -> int:
    """fp32 activations that one example keeps for its backward pass, to about a factor of two."""
    every = _all_activation_bytes(config)
    if not recomputes(config):
        return every
    _, height, width = latent_shape(config)
    widest = 4 * ACTIVATIONS_KEPT * int(config["block_out_channels"][0]) * height * width
    return every * CHECKPOINTS_KEPT // ACTIVATIONS_KEPT + widest


def _all_activation_bytes(config: Mapping[str, Any]) -> int:
    _, height, width = latent_shape(config)
    channels = config["block_out_channels"]
    layers = config.get("layers_per_block", 2)
    layers = [layers] * len(channels) if isinstance(layers, int) else layers
    places = sum(
        size * (2 * depth + 1) / 4**level
        for level, (size, depth) in enumerate(zip(channels, layers, strict=True))
    )
    return int(ACTIVATIONS_KEPT * 4 * places * height * width)
