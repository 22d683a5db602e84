"""How fast the linker writes a checkpoint of Stable Diffusion 1.4's size, against plain `cp -r` of the same.

Builds the checkpoint (random weights, true names and shapes, 2.1 GB), then takes turns: cp, link with edited
cross-attention keys and values, link with all that ESD-u edits; the first round only warms up. Both sides end
with their bytes in the system's cache, as cp does; a second figure has them flushed to disk. The ratio is of
median times. Deltas are read from a file as they are needed, as a large edit's would be.

Usage: python benchmarks/link.py [--rounds N] [--family sd1|sd2|sdxl] [--folder DIR] [--json]
Last line with --json: {"link_over_cp": throughput ratio, "link_peak_mb": ..., ...}.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from full_size import full_size_checkpoint

from compiler.atomic import sync_tree
from compiler.checkpoint import Checkpoint
from compiler.link import link
from compiler.safetensors_file import TensorEntry, encode_header, read_tensor
from compiler.selections import select
from compiler.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

EDITS = {"link_over_cp": "cross-attention-kv", "link_all_over_cp": "non-cross-attention"}


class StoredDeltas(Mapping[str, "Tensor"]):
    """Deltas that lie in a safetensors file and are read one by one."""

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> Tensor:
        return read_tensor(self.entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def store_deltas(base: Checkpoint, selection: str, path: Path) -> StoredDeltas:
    """fp32 noise for each selected tensor, written to `path` with the names of the U-Net."""
    import torch

    entries = base.weights("unet").entries
    chosen = [entries[name] for name in select(entries, selection)]
    plan = [TensorEntry(entry.name, "F32", entry.shape, path, 0, 4 * entry.parameters) for entry in chosen]
    noise = 1e-3 * torch.randn(max(entry.parameters for entry in plan))
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(encode_header(plan))
        for entry in plan:
            file.write(noise[: entry.parameters].numpy().data)
    return StoredDeltas(Weights.open(path.parent, path.stem).entries)


def timed(action: Callable[[Path], object], out: Path) -> tuple[float, float]:
    """Seconds that `action` takes to write `out`, without and with flushing it to disk."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    action(out)
    written = time.perf_counter() - start
    sync_tree(out)
    return written, time.perf_counter() - start


def measure(folder: Path, family: str, rounds: int) -> dict[str, float]:
    """All figures, by name."""
    base = Checkpoint.open(full_size_checkpoint(folder / "base", family))
    size = sum((base.root / name).stat().st_size for name in base.files())
    deltas = {
        name: store_deltas(base, selection, folder / name / "deltas.safetensors")
        for name, selection in EDITS.items()
    }
    actions: dict[str, Callable[[Path], object]] = {
        "cp": lambda out: subprocess.run(["cp", "-r", str(base.root), str(out)], check=True)
    }
    for name in EDITS:
        actions[name] = lambda out, name=name: link(base, deltas[name], out)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            seconds = timed(action, folder / "out")
            if number:
                times[name].append(seconds)
                rates = " ".join(f"{size / second / 1e9:5.2f}" for second in seconds)
                print(f"{name:>18} {rates} GB/s (cached, flushed)", file=sys.stderr)
    written = {name: statistics.median(pair[0] for pair in pairs) for name, pairs in times.items()}
    flushed = {name: statistics.median(pair[1] for pair in pairs) for name, pairs in times.items()}
    figures = {name: written["cp"] / written[name] for name in EDITS}
    figures |= {f"{name}_flushed": flushed["cp"] / flushed[name] for name in EDITS}
    figures |= {"cp_gb_per_s": size / written["cp"] / 1e9, "checkpoint_gb": size / 1e9}
    # The peak of the whole process, which also built the checkpoint: an upper bound of the linker's.
    figures["link_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {name: round(figure, 3) for name, figure in figures.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--family", choices=["sd1", "sd2", "sdxl"], default="sd1")
    parser.add_argument("--folder", type=Path, help="where to work; the disk there is measured")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="excise-link-", dir=arguments.folder) as folder:
        figures = measure(Path(folder), arguments.family, arguments.rounds)
    for name, figure in figures.items():
        print(f"{name:>26} {figure}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
