"""The weights of one component, lazily: one safetensors file, or shards under a strictly checked index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from compiler.json_file import read_object
from compiler.safetensors_file import TensorEntry, read_header, read_tensor
from editspec.errors import InputError

if TYPE_CHECKING:
    import torch

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CONVERT = (
    "load it with diffusers in a place you trust, save it with safe_serialization=True, and take that folder"
)

_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,250}\.safetensors")


@dataclass(frozen=True)
class Weights:
    """One component's tensors. `files` hold them, in order; `index` is the shards' index, or None.

    `stem` begins the files' names: diffusion_pytorch_model or model.
    """

    stem: str
    entries: Mapping[str, TensorEntry]
    files: tuple[Path, ...]
    index: Path | None = None

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in its own type. Raises `KeyError` for an unknown name."""
        return read_tensor(self.entries[name])

    @property
    def parameters(self) -> int:
        """Number of elements in all tensors."""
        return sum(entry.parameters for entry in self.entries.values())

    @classmethod
    def open(cls, folder: Path, stem: str, variant: str | None = None) -> Weights:
        """The weights called `stem` in a component's folder; `variant` as in diffusers ("fp16").

        Where the component has no files of that variant its plain ones are taken, as diffusers does.
        Raises `InputError` for missing, doubtful or unsafe files.
        """
        for wanted in dict.fromkeys((variant, None)):
            single = folder / single_name(stem, wanted)
            index = folder / index_name(stem, wanted)
            if single.is_file() and index.is_file():
                _refuse(folder, f"holds both {single.name} and {index.name}", "keep the one that counts")
            if single.is_file():
                return cls(stem, read_header(single)[0], (single,))
            if index.is_file():
                return _open_shards(stem, index)
        return _refuse_missing(folder, stem, variant)


def single_name(stem: str, variant: str | None) -> str:
    """File name of unsharded weights: diffusion_pytorch_model[.fp16].safetensors."""
    return f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"


def index_name(stem: str, variant: str | None) -> str:
    """File name of an index: diffusion_pytorch_model.safetensors.index[.fp16].json, as diffusers has it."""
    return f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"


def _open_shards(stem: str, index: Path) -> Weights:
    """Index and shards must agree exactly: diffusers lets a tensor in the wrong shard override the right."""
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    entries: dict[str, TensorEntry] = {}
    for shard in shards:
        path = index.parent / shard
        if not path.is_file():
            _refuse(index, f"names the shard {shard}, which is not there", "fetch the missing file")
        found = read_header(path)[0]
        for name in found:
            if weight_map.get(name) != shard:
                said = f"puts into {weight_map[name]}" if name in weight_map else "does not list"
                _refuse(index, f"{said} the tensor {name} that lies in {shard}", "do not trust its source")
        entries |= found
    if absent := weight_map.keys() - entries.keys():
        name = min(absent)
        _refuse(index, f"lists the tensor {name}, which {weight_map[name]} lacks", "fetch the files again")
    return Weights(stem, entries, tuple(index.parent / shard for shard in shards), index)


def _weight_map(index: Path) -> dict[str, str]:
    document = read_object(index)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "has no weight_map", "fetch it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard) or ".." in shard:
            remedy = "a shard is a .safetensors file in the index's own folder; do not trust this source"
            _refuse(index, f"takes {name[:80]} from {str(shard)[:80]!r}", remedy)
    return dict(weight_map)


def _refuse_missing(folder: Path, stem: str, variant: str | None) -> NoReturn:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        what = f"holds its weights as a pickle ({pickles[0]}), which can run code when it is opened"
        _refuse(folder, what, CONVERT)
    of_variants = re.compile(rf"{stem}\.(\w+)\.safetensors")
    others = [found[1] for name in names if (found := of_variants.fullmatch(name))]
    remedy = f"variants there: {', '.join(others)}" if others else "fetch it"
    _refuse(folder, f"has no {single_name(stem, variant)}", remedy)


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise InputError(str(path), what, remedy)
