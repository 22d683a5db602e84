"""Links a base checkpoint and deltas into a new checkpoint: only edited tensors are read, the rest is copied.

Bytes that no edit touches go from file to file inside the kernel and never pass through this process; an
edited tensor is read, added to and written in pieces. So memory does not grow with the model, and an
untouched tensor is bit-identical by construction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.atomic import remove
from compiler.checkpoint import MODEL_INDEX, UNET, Checkpoint
from compiler.file_copy import copy_range, create, opened, write_all
from compiler.fold import LinkError, TensorRounding, fold_all
from compiler.json_file import read_object
from compiler.output import storage_refusals
from compiler.safetensors_file import METADATA, TensorEntry, encode_header, read_header, read_metadata
from compiler.weights import Weights, index_name, single_name

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LinkError", "LinkReport", "TensorRounding", "copy_beside", "link", "scrubbed"]

#: Keys of configurations that tell where a file lay on somebody's machine.
_LOCAL_KEYS = frozenset(("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file"))
_CONFIGS = (
    "config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json", MODEL_INDEX
)  # fmt: skip


@dataclass(frozen=True)
class LinkReport:
    """What was written: how rounding treated each edited tensor, in the order of their names."""

    tensors: tuple[TensorRounding, ...]

    @property
    def lost_fraction(self) -> float:
        """Share of all changed elements that rounding gave their old value back, from 0 to 1."""
        changed = sum(tensor.changed for tensor in self.tensors)
        return sum(tensor.lost for tensor in self.tensors) / changed if changed else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "lost_fraction": self.lost_fraction,
            "tensors": {tensor.name: tensor.as_dict() for tensor in self.tensors},
        }


def link(base: Checkpoint, deltas: Mapping[str, Tensor], out: Path) -> LinkReport:
    """Write `base` with `deltas` folded into its U-Net to the folder `out`, which is missing or empty.

    `deltas` are fp32, by U-Net name. Each is asked for once, from one of a few threads, and let go at once,
    so the mapping may read them lazily. Keys, shapes,
    types and sharding stay; files of a variant get their plain names, so that diffusers loads the result
    without being told. Raises `LinkError` for a delta that does not fit (our own fault) and `InputError` for
    a full disk or a base that changes meanwhile; nothing is left behind then. Nothing is flushed to disk
    either: `atomic.publish` does that once the artifact is complete.
    """
    if unknown := sorted(deltas.keys() - base.weights(UNET).entries.keys()):
        raise LinkError(f"the base's U-Net has no {unknown[0]}")
    made = not out.exists()
    with storage_refusals(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise LinkError(f"{out} is not empty")
        try:
            return _link(base, deltas, out)
        except BaseException:
            for path in out.iterdir():
                remove(path)
            if made:
                out.rmdir()
            raise


def _link(base: Checkpoint, deltas: Mapping[str, Tensor], out: Path) -> LinkReport:
    out.chmod(0o755)
    for component in base.components:
        (out / component).mkdir()
        (out / component).chmod(0o755)
    weight_files = set()
    rounding: list[TensorRounding] = []
    for component in base.weighted:
        weights = base.weights(component)
        names = _output_names(weights)
        for path in weights.files:
            edits = deltas if component == UNET else {}
            rounding += _link_file(path, edits, out / component / names[path])
        if weights.index is not None:
            _write_index(weights, names, out / component / index_name(weights.stem, None))
        weight_files |= {*weights.files, weights.index}
    for name in base.files():
        if base.root / name not in weight_files:
            copy_beside(base.root / name, out / name)
    return LinkReport(tuple(sorted(rounding, key=lambda tensor: tensor.name)))


def _output_names(weights: Weights) -> dict[Path, str]:
    """Weight file -> its name in the output: a variant's files take the plain names."""
    if weights.index is None:
        return {weights.files[0]: single_name(weights.stem, None)}
    if weights.index.name == index_name(weights.stem, None):
        return {path: path.name for path in weights.files}
    total = len(weights.files)
    names = (f"{weights.stem}-{number:05}-of-{total:05}.safetensors" for number in range(1, total + 1))
    return dict(zip(weights.files, names, strict=True))


def _link_file(path: Path, deltas: Mapping[str, Tensor], target: Path) -> list[TensorRounding]:
    """Write one safetensors file; the report on those of its tensors that have a delta."""
    entries, data_start = read_header(path)
    header = encode_header(entries.values())
    with opened(path) as source, create(target) as sink:
        if read_metadata(path) == METADATA:  # usual: then a file without edits stays the same byte for byte
            header = source.read(data_start)
        write_all(sink, header, 0)
        shift = len(header) - data_start
        for run in _untouched(entries.values(), deltas):
            copy_range(source, sink, run.start, run.stop, shift, path)
    edited = [entry for entry in entries.values() if entry.name in deltas]
    return fold_all(edited, deltas, target, shift) if edited else []


def _untouched(entries: Iterable[TensorEntry], deltas: Mapping[str, Tensor]) -> list[range]:
    """The byte ranges of tensors without a delta, in order, each as long as possible."""
    runs: list[range] = []
    for entry in entries:
        if entry.name not in deltas:
            if runs and runs[-1].stop == entry.start:
                runs[-1] = range(runs[-1].start, entry.stop)
            else:
                runs.append(range(entry.start, entry.stop))
    return runs


def _write_index(weights: Weights, names: Mapping[Path, str], target: Path) -> None:
    total = sum(entry.stop - entry.start for entry in weights.entries.values())
    weight_map = {name: names[entry.file] for name, entry in weights.entries.items()}
    _write_json({"metadata": {"total_size": total}, "weight_map": weight_map}, target)


def copy_beside(path: Path, target: Path) -> None:
    """Copy a file without weights; a configuration loses what it says about somebody's machine."""
    if path.name in _CONFIGS:
        config = read_object(path)
        clean = scrubbed(config)
        if clean != config:
            _write_json(clean, target)
            return
    with opened(path) as source, create(target) as sink:
        copy_range(source, sink, 0, path.stat().st_size, 0, path)


def scrubbed(value: Any) -> Any:
    """A JSON value without the keys that tell where a file lay on somebody's machine."""
    if isinstance(value, dict):
        return {key: scrubbed(inner) for key, inner in value.items() if key not in _LOCAL_KEYS}
    if isinstance(value, list):
        return [scrubbed(inner) for inner in value]
    return value


def _write_json(value: Any, target: Path) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with create(target) as sink:
        write_all(sink, text.encode("utf-8"), 0)
