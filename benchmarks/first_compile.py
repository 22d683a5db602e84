"""The figures of a first compile, from one command: erasure and preservation, link, closed form, planning.

On the miniature each of three concepts (an object, a style, a sensitive mark) is erased by each method in a
build of its own, and the gates measure it: `erased` is the worst rate at which an erased concept is still
recognised for its own prompts, `preserved_loss` the worst mean loss of recognition, over neighbours and over
unrelated concepts (1 = all of it). Link and closed form run at Stable Diffusion 1.4's size on random weights.

Usage: python benchmarks/first_compile.py [--skip-full-size] [--trials 100] [--seed 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

UNRELATED = ["moon", "heart", "house", "tree", "fish", "boat"]
STYLES = ["striped", "outlined", "mosaic", "hatched"]
CONCEPTS: dict[str, dict[str, Any]] = {
    "star": {
        "edit": {"concept": "star", "kind": "object", "aliases": ["pentastar"]},
        "anchor": "box",
        "near": (["sixstar", "ball", "ring"], "object"),
        "far": (UNRELATED, "object"),
    },
    "dotted": {
        "edit": {"concept": "dotted", "kind": "style"},
        "anchor": "plain",
        "near": (STYLES, "style"),
        "far": (UNRELATED, "object"),
    },
    "flame": {
        "edit": {"concept": "flame", "kind": "content", "aliases": ["fire", "burning"]},
        "anchor": "",
        "near": (["crack", "spill"], "content"),
        "far": (UNRELATED, "object"),
    },
}
METHODS: dict[str, dict[str, Any]] = {
    "closed-form": {"method": "closed-form", "templates": []},  # the concept alone, as published
    "esd": {
        "method": "esd",
        "selection": "cross-attention",
        "negative_guidance": 2.0,
        "steps": 200,
        "learning_rate": 4e-4,  # the miniature is small: ten times what Stable Diffusion takes
        "batch": 8,
        "keep_weight": 4.0,
    },
}


def spec_document(name: str, method: str, trials: int, seed: int) -> dict[str, Any]:
    """One edit of the miniature with gates that measure it."""
    case = CONCEPTS[name]
    edit = {"id": name, "edit": "erase", **case["edit"], **METHODS[method]}
    if method == "closed-form":
        edit["anchor"] = case["anchor"]
    near, near_kind = case["near"]
    far, far_kind = case["far"]
    common = {"trials": trials}
    return {
        "editspec": 1,
        "name": f"{name}-{method}",
        "base": {"path": "miniature"},
        "seed": seed,
        "edits": [edit],
        "preserve": {"concepts": list(dict.fromkeys([*near, *far]))},
        "gates": [
            {"gate": "erased", "concept": name, "max_rate": 0.05, **common},
            {
                "gate": "preserved",
                "id": "near",
                "concepts": near,
                "kind": near_kind,
                "max_loss": 0.1,
                **common,
            },
            {"gate": "preserved", "id": "far", "concepts": far, "kind": far_kind, "max_loss": 0.1, **common},
        ],
    }


def miniature_figures(trials: int, seed: int) -> dict[str, Any]:
    """Every concept by every method: rates and losses of each build, and the worst of them."""
    from compiler.artifact import GATES
    from compiler.output import REJECTED
    from editspec import GateFailed, load_spec
    from excise.commands.compile import build
    from excise.embedded import register

    register()
    builds: dict[str, dict[str, float]] = {}
    for name in CONCEPTS:
        for method in METHODS:
            with tempfile.TemporaryDirectory(prefix="first-compile-") as temporary:
                folder = Path(temporary)
                spec = folder / "spec.json"
                spec.write_text(json.dumps(spec_document(name, method, trials, seed)), encoding="utf-8")
                start = time.perf_counter()
                out = folder / "out"
                try:
                    build(load_spec(spec), out)
                except GateFailed:  # a figure all the same
                    out = folder / REJECTED / "out"
                results = json.loads((out / GATES).read_text(encoding="utf-8"))["gates"]
                seconds = time.perf_counter() - start
            observed = {result["id"]: result["observed"] for result in results}
            builds[f"{name} {method}"] = {
                "erased": observed[f"erased-{name}"],
                "near_loss": observed["near"],
                "far_loss": observed["far"],
                "seconds": round(seconds, 1),
            }
            print(f"{name} {method}: {builds[f'{name} {method}']}", flush=True)
    return {
        "erased": max(build["erased"] for build in builds.values()),
        "preserved_loss": max(max(build["near_loss"], build["far_loss"]) for build in builds.values()),
        "builds": builds,
    }


def plan_seconds(rounds: int = 5) -> float:
    """Median wall time of `excise plan` on the demo spec, start-up included."""
    command = [sys.executable, "-m", "excise", "plan", str(ROOT / "excise" / "miniature" / "demo.json")]
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        times.append(time.perf_counter() - start)
    return round(sorted(times)[rounds // 2], 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-full-size", action="store_true", help="only the miniature and planning")
    parser.add_argument("--trials", type=int, default=100, help="draws of each gate")
    parser.add_argument(
        "--seed", type=int, default=7, help="of the specs: of training and of judged pictures"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "plan_seconds": plan_seconds(),
        **miniature_figures(arguments.trials, arguments.seed),
    }
    if not arguments.skip_full_size:
        for script in ("link.py", "closed_form.py"):
            os.sync()  # what an earlier part wrote must not be written back while this one is timed
            command = [sys.executable, str(ROOT / "benchmarks" / script), "--json"]
            output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
            figures |= json.loads(output.strip().splitlines()[-1])
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
