"""How near the ONNX export is to torch on the miniature, and what exporting a U-Net of full size costs.

The miniature is exported whole, in fp32 and fp16: the largest difference of one U-Net call and the PSNR of a
picture of 25 steps. With --full a U-Net of Stable Diffusion 1.4's size with random weights is exported and
compared at three sizes in a process of its own, whose peak memory is the figure.

Usage: python benchmarks/onnx_export.py [--full] [--no-miniature] [--precision fp16] [--folder DIR] [--json]
Last line with --json: {"fp32_unet_max_abs": ..., "fp32_image_psnr": ..., "full_peak_gb": ..., ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from full_size import full_size_checkpoint  # noqa: E402 - the folder is no package

STEPS = 25
CHILD = """
import json, sys, time
from pathlib import Path
from compiler.checkpoint import Checkpoint
from exporters.onnx_folder import export_model
from exporters.onnx_graphs import graphs
checkpoint = Checkpoint.open(sys.argv[1])
graph = next(graph for graph in graphs(checkpoint) if graph.folder == "unet")
start = time.perf_counter()
parity = export_model(graph, checkpoint, Path(sys.argv[2]), sys.argv[3])
seconds = time.perf_counter() - start
Path(sys.argv[2], "figures.json").write_text(json.dumps({"seconds": seconds, "max_abs": parity.max_abs}))
"""


def miniature(folder: Path) -> dict[str, float]:
    """Parity of the embedded model in both precisions."""
    from compiler.checkpoint import Checkpoint
    from excise.miniature.assets import MODEL
    from exporters.onnx_folder import PARITY_DRAW, export_onnx

    figures: dict[str, float] = {}
    for precision in ("fp32", "fp16"):
        start = time.perf_counter()
        done = export_onnx(
            Checkpoint.open(MODEL), folder / precision, precision=precision, draw=PARITY_DRAW, steps=STEPS
        )
        unet = next(model for model in done.models if model.model == "unet")
        assert done.image is not None  # a draw was given
        figures |= {
            f"{precision}_seconds": time.perf_counter() - start,
            f"{precision}_unet_max_abs": unet.max_abs,
            f"{precision}_image_psnr": min(done.image.psnr, 999.0),  # equal pictures have no finite one
            f"{precision}_image_max_levels": float(done.image.max_levels),
        }
    return figures


def full_size(folder: Path, precision: str) -> dict[str, float]:
    """Time, peak memory and parity of exporting a U-Net of Stable Diffusion 1.4's size."""
    base = full_size_checkpoint(folder / "base", "sd1")
    out = folder / "full"
    out.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", CHILD, str(base), str(out), precision]
    child = os.spawnve(os.P_NOWAIT, sys.executable, arguments, environment)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"the export ended with status {os.waitstatus_to_exitcode(status)}")
    found = json.loads((out / "figures.json").read_text("utf-8"))
    unit = 2**30 if sys.platform == "darwin" else 2**20
    size = sum(path.stat().st_size for path in (out / "unet").iterdir())
    return {
        "full_seconds": found["seconds"],
        "full_peak_gb": usage.ru_maxrss / unit,
        "full_max_abs": found["max_abs"],
        "full_gb": size / 1e9,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="export a U-Net of full size, too")
    parser.add_argument("--no-miniature", action="store_true")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of the full size")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on the last line")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="excise-onnx-", dir=arguments.folder) as folder:
        if not arguments.no_miniature:
            figures |= miniature(Path(folder))
        if arguments.full:
            figures |= full_size(Path(folder), arguments.precision)
    figures = {name: float(f"{figure:.4g}") for name, figure in figures.items()}
    for name, figure in figures.items():
        print(f"{name:>24} {figure}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
