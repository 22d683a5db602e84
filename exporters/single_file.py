"""A checkpoint as one safetensors file in the original LDM naming, for A1111, ComfyUI and `from_single_file`.

Tensors go from file to file as bytes: renamed, three attention matrices of open_clip one after the other. The
result is read back through diffusers' own conversion and must give every tensor that went in, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from compiler.checkpoint import Checkpoint
from compiler.file_copy import copy_range, create, opened, write_all
from compiler.safetensors_file import TensorEntry, encode_header, read_tensor
from editspec.errors import GateFailed, InputError
from exporters import ldm_names
from exporters.destination import export_file, record

if TYPE_CHECKING:
    from torch import Tensor

_HEADER_BYTES = 2**20
_POSITIONS = "embeddings.position_ids"  # a count from 0, which old files carry; open_clip has none


@dataclass(frozen=True)
class Target:
    """One tensor of the file: the bytes of `sources` in a row, or the transpose of the only one."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[TensorEntry, ...]
    transposed: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(source.stop - source.start for source in self.sources)


def export_single_file(checkpoint: Checkpoint, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write `checkpoint` to the file `out`; returns its record, which lies beside it.

    `InputError` for a tensor that LDM has no name for. `GateFailed`, and nothing is written, where diffusers
    does not read back what went in.
    """
    targets = sorted(plan(checkpoint), key=lambda target: target.name)
    needed = sum(target.size for target in targets) + _HEADER_BYTES
    with export_file(out, needed_bytes=needed, force=force) as made:
        write(targets, made.part)
        checked = verify(made.part, checkpoint)
        scheduler = checkpoint.config("scheduler")
        made.facts = record(
            "single-file",
            checkpoint,
            {
                "tensors": len(targets),
                "round_trip": {"tensors": checked, "identical": True},
                "left_out": [name for name in checkpoint.weighted if name not in _KEPT],
                # the file cannot say these: whoever loads it must
                "prediction_type": scheduler.get("prediction_type", "epsilon"),
                "rescale_betas_zero_snr": bool(scheduler.get("rescale_betas_zero_snr", False)),
            },
        )
    return made.facts


_KEPT = ("unet", "vae", "text_encoder", "text_encoder_2")


def plan(checkpoint: Checkpoint) -> list[Target]:
    """All tensors of the file, in no order."""
    targets = _unet(checkpoint) + _vae(checkpoint)
    if checkpoint.family == "sd2":
        return targets + _open_clip(checkpoint, "text_encoder", "sd2")
    targets += _clip(checkpoint, "text_encoder")
    if checkpoint.family == "sdxl":
        targets += _open_clip(checkpoint, "text_encoder_2", "sdxl")
    return targets


def write(targets: Iterable[Target], path: Path) -> None:
    """Write the file: header, then each tensor's bytes. Memory does not grow with the checkpoint."""
    targets = list(targets)
    entries = [TensorEntry(one.name, one.sources[0].dtype, one.shape, path, 0, one.size) for one in targets]
    header = encode_header(entries)
    position = len(header)
    with create(path) as sink:
        write_all(sink, header, 0)
        for one in targets:
            if one.transposed:
                write_all(sink, _transposed_bytes(one.sources[0]), position)
                position += one.size
                continue
            for source in one.sources:
                with opened(source.file) as file:
                    copy_range(file, sink, source.start, source.stop, position - source.start, source.file)
                position += source.stop - source.start


def verify(path: Path, checkpoint: Checkpoint) -> int:
    """Read the file through diffusers' conversion and compare with `checkpoint`; the number of tensors.

    `GateFailed` names the first that is missing, is too many or differs in a bit.
    """
    from diffusers.loaders import single_file_utils as stock
    from safetensors.torch import load_file

    state = load_file(path)
    found = {
        "unet": stock.convert_ldm_unet_checkpoint(state, checkpoint.config("unet")),
        "vae": stock.convert_ldm_vae_checkpoint(state, checkpoint.config("vae")),
    }
    for name, prefix, opened_clip in _encoders(checkpoint):
        if opened_clip:
            config = SimpleNamespace(hidden_size=checkpoint.config(name)["hidden_size"])
            text = stock.convert_open_clip_checkpoint(SimpleNamespace(config=config), state, prefix=prefix)
        else:
            text = stock.convert_ldm_clip_checkpoint(state)
        found[name] = {_short(key): tensor for key, tensor in text.items()}
    return sum(_compared(checkpoint, name, tensors) for name, tensors in found.items())


def _compared(checkpoint: Checkpoint, component: str, found: Mapping[str, Tensor]) -> int:
    import torch

    weights = checkpoint.weights(component)
    expected = {_current(component, name): name for name in weights.entries if _POSITIONS not in name}
    present = {name for name in found if _POSITIONS not in name}
    if wrong := sorted(expected.keys() ^ present):
        where = "lost" if wrong[0] in expected else "made up"
        raise GateFailed(f"the single file does not read back: {component} {where} {wrong[0]}")
    for name, source in expected.items():
        tensor, original = found[name], weights.read(source)
        if tensor.shape != original.shape or tensor.dtype != original.dtype:
            raise GateFailed(f"the single file does not read back: {component} {name} has another shape")
        if not torch.equal(tensor.contiguous().view(torch.uint8), original.view(torch.uint8)):
            raise GateFailed(f"the single file does not read back: {component} {name} differs")
    return len(expected)


def _current(component: str, name: str) -> str:
    """The name that today's diffusers gives the tensor: it renames the attention of old VAE files."""
    if component != "vae":
        return _short(name) if component.startswith("text_encoder") else name
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _encoders(checkpoint: Checkpoint) -> list[tuple[str, str, bool]]:
    """(component, prefix, is of open_clip) of each text encoder."""
    if checkpoint.family == "sd1":
        return [("text_encoder", ldm_names.CLIP_PREFIX["sd1"], False)]
    if checkpoint.family == "sd2":
        return [("text_encoder", ldm_names.OPEN_CLIP_PREFIX["sd2"], True)]
    first = ("text_encoder", ldm_names.CLIP_PREFIX["sdxl"], False)
    return [first, ("text_encoder_2", ldm_names.OPEN_CLIP_PREFIX["sdxl"], True)]


def _unet(checkpoint: Checkpoint) -> list[Target]:
    config, entries = checkpoint.config("unet"), checkpoint.weights("unet").entries
    return [
        Target(_known(ldm_names.unet_name(name, config, entries), entry), entry.shape, (entry,))
        for name, entry in entries.items()
    ]


def _vae(checkpoint: Checkpoint) -> list[Target]:
    config, found = checkpoint.config("vae"), []
    for name, entry in checkpoint.weights("vae").entries.items():
        target = _known(ldm_names.vae_name(name, config), entry)
        kernel = ldm_names.is_vae_attention(target) and len(entry.shape) == 2
        found.append(Target(target, (*entry.shape, 1, 1) if kernel else entry.shape, (entry,)))
    return found


def _clip(checkpoint: Checkpoint, component: str) -> list[Target]:
    prefix = ldm_names.CLIP_PREFIX[checkpoint.family]
    return [
        Target(prefix + _short(name), entry.shape, (entry,))
        for name, entry in checkpoint.weights(component).entries.items()
    ]


def _open_clip(checkpoint: Checkpoint, component: str, family: str) -> list[Target]:
    parts: dict[str, list[TensorEntry]] = {}
    for name, entry in checkpoint.weights(component).entries.items():
        if not name.endswith(_POSITIONS):
            target = ldm_names.OPEN_CLIP_PREFIX[family] + ldm_names.open_clip_name(_short(name))
            parts.setdefault(target, []).append(entry)
    found = []
    for target, entries in parts.items():
        order = ldm_names.in_order([entry.name for entry in entries]) if len(entries) > 1 else None
        sources = entries if order is None else sorted(entries, key=lambda entry: order.index(entry.name))
        rows, rest = sum(entry.shape[0] for entry in sources), sources[0].shape[1:]
        if len({(entry.dtype, entry.shape) for entry in sources}) > 1:
            raise InputError(str(sources[0].file), f"has parts of {target} in different shapes or types")
        turned = target.endswith("text_projection")
        shape = (*rest, rows) if turned else (rows, *rest)
        found.append(Target(target, shape, tuple(sources), turned))
    return found


def _short(name: str) -> str:
    return name.removeprefix("text_model.")


def _known(name: str | None, entry: TensorEntry) -> str:
    if name is None:
        what = f"has {entry.name}, which the original naming has no name for"
        raise InputError(str(entry.file), what, "this architecture exists as a diffusers folder only")
    return name


def _transposed_bytes(entry: TensorEntry) -> memoryview:
    import torch

    turned = read_tensor(entry).T.contiguous().reshape(-1)
    return memoryview(turned.view(torch.uint8).numpy().data)
