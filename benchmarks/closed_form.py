"""Mass erasure in closed form at Stable Diffusion 1.4's size: spec to folder, in a process of its own.

100 concepts with an anchor and no templates, random weights in the true shapes. Prints seconds of wall time
from process start to delivered folder, flushed to disk (the median of a few rounds, and their spread), the
process's peak memory, and the largest relative difference of any matrix's change to the textbook dense
formula in float64. Each round begins with an empty cache and the machine in one state (readiness.py).

Usage: python benchmarks/closed_form.py [--base FOLDER] [--concepts 100] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from full_size import full_size_checkpoint, words  # noqa: E402 - the folder is no package
from readiness import ready  # noqa: E402

RIDGE = 0.1
HEADROOM = 2**30  # bytes of memory that a compile takes
CHILD = """
import sys
from pathlib import Path
from compiler.pipeline import compile_spec
from editspec import load_spec
compile_spec(load_spec(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def spec_document(base: Path, concepts: int) -> dict[str, Any]:
    """A spec that sends `concepts` words of the synthetic vocabulary to one anchor."""
    anchor, *names = words(concepts + 1)
    common = {"edit": "erase", "method": "closed-form", "anchor": anchor, "templates": [], "ridge": RIDGE}
    edits = [{"id": f"edit-{number}", "concept": name, **common} for number, name in enumerate(names)]
    return {"editspec": 1, "name": "mass-erasure", "base": {"path": str(base)}, "edits": edits}


def timed_compile(spec: Path, out: Path, cache: Path) -> tuple[float, float]:
    """Compile in a child process with an empty cache; (seconds, peak resident MB)."""
    environment = os.environ | {"EXCISE_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    child = os.spawnve(
        os.P_NOWAIT, sys.executable, [sys.executable, "-c", CHILD, str(spec), str(out)], environment
    )
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"the compile ended with status {os.waitstatus_to_exitcode(status)}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return seconds, usage.ru_maxrss / unit


def difference_to_dense(base: Path, out: Path, document: dict[str, Any]) -> float:
    """Largest |change - dense change| / |dense change| over all matrices, Frobenius norms, in float64.

    Dense: W = (sum v c^T + sum W_0 p p^T + ridge W_0) (sum c c^T + sum p p^T + ridge I)^-1, UCE eq. 7.
    """
    import torch

    from compiler.checkpoint import Checkpoint
    from compiler.columns import ColumnSet
    from compiler.deltas import load
    from compiler.text import TextEncoder

    checkpoint = Checkpoint.open(base)
    gathered = ColumnSet(TextEncoder.from_checkpoint(checkpoint))
    for edit in document["edits"]:
        gathered.move("{}", edit["concept"], edit["anchor"])
    columns = gathered.build()
    edited, anchors = columns.edited, columns.anchors
    kept = columns.preserved * columns.preserved_weights.sqrt()
    ridge = RIDGE * torch.eye(len(edited), dtype=torch.float64)
    inverse = torch.linalg.inv(edited @ edited.T + kept @ kept.T + ridge)
    worst = 0.0
    for name, delta in load(out / "provenance" / "deltas.safetensors").items():
        weight = checkpoint.weights("unet").read(name).double()
        wanted = (weight @ anchors) @ edited.T + (weight @ kept) @ kept.T + weight @ ridge
        dense = wanted @ inverse - weight
        worst = max(worst, float((delta.double() - dense).norm() / dense.norm()))
    return worst


def measure(base: Path | None = None, concepts: int = 100, rounds: int = 3) -> dict[str, Any]:
    """All figures; builds the base in a temporary folder unless one is given."""
    with tempfile.TemporaryDirectory(prefix="closed-form-") as temporary:
        scratch = Path(temporary)
        base = base or full_size_checkpoint(scratch / "base")
        document = spec_document(base.resolve(), concepts)
        spec = scratch / "spec.json"
        spec.write_text(json.dumps(document), encoding="utf-8")
        files = [path for path in base.rglob("*") if path.is_file()]
        memory = sum(path.stat().st_size for path in files) + HEADROOM
        seconds, peaks = [], []
        for _ in range(rounds):
            for folder in ("out", "cache"):
                shutil.rmtree(scratch / folder, ignore_errors=True)
            ready(files, memory)
            wall, peak = timed_compile(spec, scratch / "out", scratch / "cache")
            print(f"{wall:.2f} s, {peak:.0f} MB", file=sys.stderr)
            seconds.append(wall)
            peaks.append(peak)
        return {
            "closed_form_seconds": round(statistics.median(seconds), 2),
            "closed_form_seconds_spread": [round(min(seconds), 2), round(max(seconds), 2)],
            "closed_form_peak_mb": round(max(peaks)),
            "closed_form_difference": difference_to_dense(base, scratch / "out", document),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base", type=Path, help="a full-size checkpoint from full_size.py, instead of a new one"
    )
    parser.add_argument("--concepts", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    figures = measure(arguments.base, arguments.concepts, arguments.rounds)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
