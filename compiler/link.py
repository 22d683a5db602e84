"""Links a base checkpoint and deltas into a new checkpoint: only edited tensors are read, the rest is copied.

Bytes that no edit touches go from file to file inside the kernel and never pass through this process; an
edited tensor is read, added to and written in pieces. So memory does not grow with the model, and an
untouched tensor is bit-identical by construction. Copying needs no deltas: it can run while these are made.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.atomic import remove
from compiler.checkpoint import MODEL_INDEX, UNET, Checkpoint
from compiler.file_copy import copy_range, create, opened, reopen, write_all
from compiler.fold import MAX_THREADS, LinkError, TensorRounding, fold, one_thread_each, one_thread_here
from compiler.json_file import read_object
from compiler.output import storage_refusals
from compiler.safetensors_file import METADATA, TensorEntry, encode_header, read_layout
from compiler.weights import Weights, index_name, single_name

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LinkError",
    "LinkReport",
    "Linking",
    "TensorRounding",
    "copy_beside",
    "link",
    "linking",
    "scrubbed",
]

STRETCH = 2**28  # bytes copied between two looks at whether the build was given up

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


def link(base: Checkpoint, deltas: Mapping[str, Tensor | TensorEntry], out: Path) -> LinkReport:
    """Write `base` with `deltas` folded into its U-Net to the folder `out`, which is missing or empty.

    `deltas` are fp32, by U-Net name: tensors, or the entries of a file, which are read in pieces. Each is
    asked for once, from one of a few threads, and let go at once. Keys, shapes, types and sharding stay;
    files of a variant get their plain names, so that diffusers loads the result without being told. Raises
    `LinkError` for a delta that does not fit (our own fault) and `InputError` for a full disk or a base that
    changes meanwhile; nothing is left behind then. Nothing is flushed to disk either: `atomic.publish` does
    that once the artifact is complete.
    """
    with linking(base, deltas.keys(), out) as begun:
        return begun.fold(deltas)


@contextlib.contextmanager
def linking(
    base: Checkpoint,
    edited: Collection[str],
    out: Path,
    copied: Callable[[Path], object] = lambda path: None,
) -> Iterator[Linking]:
    """Begin to write `base` to `out`: all but the U-Net tensors named `edited` is copied by other threads.

    Inside, the caller makes the deltas and hands them to `Linking.fold`; the rest is as `link` says.
    `copied` is told of each weight file as soon as all that is only copied stands in it.
    """
    if unknown := sorted(set(edited) - base.weights(UNET).entries.keys()):
        raise LinkError(f"the base's U-Net has no {unknown[0]}")
    made = not out.exists()
    with storage_refusals(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise LinkError(f"{out} is not empty")
        stopped = threading.Event()
        with contextlib.ExitStack() as undo:
            undo.callback(_take_back, out, made)
            with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
                try:
                    yield Linking(base, frozenset(edited), out, pool, stopped, copied)
                finally:
                    stopped.set()
                    pool.shutdown(cancel_futures=True)
            undo.pop_all()


def _take_back(out: Path, made: bool) -> None:
    """Empty the folder of a link that did not end well, and remove it if the link has `made` it."""
    for path in out.iterdir():
        remove(path)
    if made:
        out.rmdir()


@dataclass(frozen=True)
class _File:
    """One weight file under way: its tensors lie in `target` at their old places plus `shift`."""

    source: Path
    target: Path
    shift: int
    entries: tuple[TensorEntry, ...]


class Linking:
    """A checkpoint under way: every file is begun, and what no edit touches is being copied."""

    def __init__(
        self,
        base: Checkpoint,
        edited: frozenset[str],
        out: Path,
        pool: ThreadPoolExecutor,
        stopped: threading.Event,
        copied: Callable[[Path], object],
    ) -> None:
        self._edited, self._pool, self._stopped, self._copied = edited, pool, stopped, copied
        self._unet: list[_File] = []
        out.chmod(0o755)
        for component in base.components:
            (out / component).mkdir()
            (out / component).chmod(0o755)
        weight_files = set()
        runs: list[tuple[int, _File, list[range]]] = []
        for component in base.weighted:
            weights = base.weights(component)
            names = _output_names(weights)
            for path in weights.files:
                file = _begin_file(path, out / component / names[path])
                if component == UNET:
                    self._unet.append(file)
                untouched = _runs(file.entries, without=edited if component == UNET else ())
                runs.append((sum(len(run) for run in untouched), file, untouched))
            if weights.index is not None:
                _write_index(weights, names, out / component / index_name(weights.stem, None))
            weight_files |= {*weights.files, weights.index}
        for name in base.files():
            if base.root / name not in weight_files:
                copy_beside(base.root / name, out / name)
        # The largest file first: then no thread begins it when the others have nothing left to do.
        runs.sort(key=lambda item: -item[0])
        self._copies = [pool.submit(self._copy, file, untouched) for _, file, untouched in runs]

    def fold(self, deltas: Mapping[str, Tensor | TensorEntry]) -> LinkReport:
        """Write the edited tensors and wait for the copies; what was announced but has no delta is copied.

        Raises as `link` does. For calling once.
        """
        if unknown := sorted(deltas.keys() - self._edited):
            raise LinkError(f"{unknown[0]} was not announced as edited")
        folds: list[Future[TensorRounding]] = []
        for file in self._unet:
            done = {entry.name for entry in file.entries} - self._edited
            if still := _runs(file.entries, without=done | deltas.keys()):
                self._copies.append(self._pool.submit(self._copy, file, still))
        with one_thread_each() if deltas else contextlib.nullcontext():
            for file in self._unet:
                folds += [
                    self._pool.submit(self._fold_one, entry, deltas, file)
                    for entry in file.entries
                    if entry.name in deltas
                ]
            _finish([*self._copies, *folds])
        return LinkReport(tuple(sorted((one.result() for one in folds), key=lambda tensor: tensor.name)))

    def _copy(self, file: _File, runs: Iterable[range]) -> None:
        with opened(file.source) as source, reopen(file.target) as sink:
            for run in runs:
                for start in range(run.start, run.stop, STRETCH):
                    if self._stopped.is_set():
                        return
                    stop = min(start + STRETCH, run.stop)
                    copy_range(source, sink, start, stop, file.shift, file.source)
        self._copied(file.target)

    def _fold_one(
        self, entry: TensorEntry, deltas: Mapping[str, Tensor | TensorEntry], file: _File
    ) -> TensorRounding:
        one_thread_here()
        with opened(entry.file) as source, reopen(file.target) as sink:
            return fold(entry, deltas[entry.name], source, sink, file.shift)


def _finish(futures: Collection[Future[Any]]) -> None:
    """Wait for all; where one fails, raise its error without waiting for the others."""
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future.done():
            future.result()


def _begin_file(path: Path, target: Path) -> _File:
    """Create a safetensors file with the opening that the file at `path` gets, and no tensor yet."""
    entries, data_start, metadata = read_layout(path)
    header = encode_header(entries.values())
    with opened(path) as source, create(target) as sink:
        if metadata == METADATA:  # usual: then a file without edits stays the same byte for byte
            header = source.read(data_start)
        write_all(sink, header, 0)
    return _File(path, target, len(header) - data_start, tuple(entries.values()))


def _runs(entries: Iterable[TensorEntry], without: Collection[str]) -> list[range]:
    """The byte ranges of tensors that are not named in `without`, in order, each as long as possible."""
    runs: list[range] = []
    for entry in entries:
        if entry.name not in without:
            if runs and runs[-1].stop == entry.start:
                runs[-1] = range(runs[-1].start, entry.stop)
            else:
                runs.append(range(entry.start, entry.stop))
    return runs


def _output_names(weights: Weights) -> dict[Path, str]:
    """Weight file -> its name in the output: a variant's files take the plain names."""
    if weights.index is None:
        return {weights.files[0]: single_name(weights.stem, None)}
    if weights.index.name == index_name(weights.stem, None):
        return {path: path.name for path in weights.files}
    total = len(weights.files)
    names = (f"{weights.stem}-{number:05}-of-{total:05}.safetensors" for number in range(1, total + 1))
    return dict(zip(weights.files, names, strict=True))


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
