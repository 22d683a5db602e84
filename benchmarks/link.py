"""How fast the linker writes a checkpoint of Stable Diffusion 1.4's size, against plain `cp -r` of the same.

Builds the checkpoint (random weights, true names and shapes, 2.1 GB), then takes turns: cp, link with edited
cross-attention keys and values, link with all that ESD-u edits. A first round only warms up; each further one
begins with another of the three, and before each turn the machine is put into one state (readiness.py). Both
sides end with their bytes in the system's cache, as cp does; a second figure has them flushed to disk. A
round gives one ratio of times, cp's over the linker's; the figure is the median over rounds, its least and
greatest beside it. Deltas are read from a file as they are needed, as a large edit's would be.

Usage: python benchmarks/link.py [--rounds N] [--family sd1|sd2|sdxl] [--folder DIR] [--json]
Last line with --json: {"link_over_cp": throughput ratio, "link_over_cp_spread": [least, greatest], ...}.
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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from readiness import ready

from compiler.atomic import sync_tree
from compiler.checkpoint import Checkpoint
from compiler.link import link
from compiler.safetensors_file import TensorEntry, encode_header, read_header
from compiler.selections import select

HEADROOM = 2**29  # bytes that the linker itself takes
EDITS = {"link_over_cp": "cross-attention-kv", "link_all_over_cp": "non-cross-attention"}


def store_deltas(base: Checkpoint, selection: str, path: Path) -> dict[str, TensorEntry]:
    """fp32 noise for each selected tensor, written to `path` with the names of the U-Net; its entries."""
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
    return read_header(path)[0]


def timed(
    action: Callable[[Path], object], out: Path, sources: Sequence[Path], size: int
) -> tuple[float, float]:
    """Seconds that `action` takes to write `out`, `size` bytes, without and with flushing it to disk."""
    shutil.rmtree(out, ignore_errors=True)
    ready(sources, size + HEADROOM)
    start = time.perf_counter()
    action(out)
    written = time.perf_counter() - start
    sync_tree(out)
    return written, time.perf_counter() - start


def measure(folder: Path, family: str, rounds: int) -> dict[str, Any]:
    """All figures, by name."""
    script = Path(__file__).with_name("full_size.py")
    # In a process of its own, whose memory does not count for the linker's.
    built = [sys.executable, str(script), str(folder / "base"), "--family", family]
    subprocess.run(built, check=True, stdout=subprocess.DEVNULL)
    base = Checkpoint.open(folder / "base")
    files = [base.root / name for name in base.files()]
    size = sum(path.stat().st_size for path in files)
    deltas = {
        name: store_deltas(base, selection, folder / name / "deltas.safetensors")
        for name, selection in EDITS.items()
    }
    actions: dict[str, Callable[[Path], object]] = {
        "cp": lambda out: subprocess.run(["cp", "-r", str(base.root), str(out)], check=True)
    }
    sources = {"cp": files}
    for name in EDITS:
        actions[name] = partial(link, base, deltas[name])
        sources[name] = [*files, folder / name / "deltas.safetensors"]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        order = [*actions][number % len(actions) :] + [*actions][: number % len(actions)]
        for name in order:
            seconds = timed(actions[name], folder / "out", sources[name], size)
            if number:
                times[name].append(seconds)
                rates = " ".join(f"{size / second / 1e9:5.2f}" for second in seconds)
                print(f"{name:>18} {rates} GB/s (cached, flushed)", file=sys.stderr)
    figures: dict[str, Any] = {}
    for at, suffix in enumerate(("", "_flushed")):
        for name in EDITS:
            pairs = zip(times["cp"], times[name], strict=True)
            ratios = sorted(copied[at] / linked[at] for copied, linked in pairs)
            figures[f"{name}{suffix}"] = round(statistics.median(ratios), 3)
            figures[f"{name}{suffix}_spread"] = [round(ratios[0], 3), round(ratios[-1], 3)]
    cp_seconds = statistics.median(pair[0] for pair in times["cp"])
    figures |= {"cp_gb_per_s": round(size / cp_seconds / 1e9, 3), "checkpoint_gb": round(size / 1e9, 3)}
    # The peak of this whole process, torch and the full edit included: an upper bound of the linker's.
    figures["link_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return figures


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
