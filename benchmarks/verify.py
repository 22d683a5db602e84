"""How fast verifying reads: GB/s of wall time and of one core's time, beside plain sha256 of the same files.

Pads a copy of an artifact with weight files until it has the size of a real one, writes its manifest, and
verifies it some times over with its files in the system's cache (so that the disk is no part of it), taking
turns with hashing alone. `per_core` divides by processor time, so that a busy machine does not blur it.

Usage: python benchmarks/verify.py DIR [--gigabytes G] [--rounds N] [--folder DIR] [--json]
DIR is any artifact, such as `excise compile benchmarks/no_star.json -o DIR` gives.
It is not changed.
Last line with --json: {"verify_gb_per_s": .., "verify_gb_per_s_per_core": .., "sha256_gb_per_s": .., ...}.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from compiler.artifact import Artifact
from compiler.safetensors_file import TensorEntry, encode_header
from exporters.inventory import Inventory
from exporters.manifest import write_manifest
from exporters.verify import verify_artifact

PIECE = 2**24


def pad(folder: Path, gigabytes: float) -> None:
    """Add safetensors files of up to 1 GB below provenance/, where an artifact may have some."""
    left, number = int(gigabytes * 1e9), 0
    while left > 0:
        size = min(left, 10**9) // 4 * 4
        path = folder / "provenance" / f"padding-{number}.safetensors"
        with path.open("wb") as file:
            file.write(encode_header([TensorEntry("padding", "F32", (size // 4,), path, 0, size)]))
            for start in range(0, size, PIECE):
                file.write(bytes(min(PIECE, size - start)))
        left, number = left - size, number + 1
    write_manifest(Artifact(folder))


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall time and of processor time (all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """All figures, by name; the first round only fills the cache."""
    size = sum(Inventory.of(folder).files.values())

    def verify() -> None:
        report = verify_artifact(folder)
        assert report.ok, report.findings

    actions: dict[str, Callable[[], object]] = {
        "sha256": lambda: Inventory.of(folder).digests(),
        "verify": verify,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            seconds = timed(action)
            if number:
                times[name].append(seconds)
                print(f"{name:>8} {size / seconds[0] / 1e9:6.2f} GB/s", file=sys.stderr)
    figures = {"gigabytes": size / 1e9}
    for name, pairs in times.items():
        figures[f"{name}_gb_per_s"] = size / statistics.median(wall for wall, _ in pairs) / 1e9
        figures[f"{name}_gb_per_s_per_core"] = size / statistics.median(cpu for _, cpu in pairs) / 1e9
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {name: round(figure, 3) for name, figure in figures.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact", metavar="DIR", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="excise-verify-", dir=arguments.folder) as place:
        folder = Path(shutil.copytree(arguments.artifact, Path(place) / "artifact"))
        pad(folder, arguments.gigabytes)
        figures = measure(folder, arguments.rounds)
    for name, figure in figures.items():
        print(f"{name:>26} {figure}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
