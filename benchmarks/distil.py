"""ESD and concept ablation as published against ours, on the miniature, in one process.

For each concept and seed both are built from an empty cache on the same base, then judged by the oracles in
pictures of the same prompts and seeds: `erased` is how often the concept is still recognised for its own
prompts, `preserved` how often other objects are for theirs. Ratios are ours over published: `evals_ratio` of
U-Net evals (a backward counts two), `wall_ratio` of seconds, banks and loading included. Intervals are 95 %
bootstraps over (concept, seed) pairs. For ablation `second` is another concept on an anchor sampled before.
As published, every edit generates its thousand pictures: here they are made once for each seed, and what
that took, measured by building the first edit again with them at hand, is added to the seed's other edits.

Usage: python benchmarks/distil.py [--concepts 5] [--seeds 3] [--trials 25] [--first-seed 20000] [--json]
A try: --concepts 1 --seeds 1 --trials 5 --published-steps 4 --images 8 (then `"full": false`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from distil_bench import ANCHOR, FIRST_SEED, Bench, bootstrap  # noqa: E402 - the folder is no package

CONCEPTS = ("heart", "fish", "star", "tree", "moon", "house", "ring", "boat")
FULL_STEPS, FULL_IMAGES = 200, 1000
# The papers' rates are for Stable Diffusion; a U-Net a two-hundredth of its size wants larger ones. Ours fall
# to zero along a cosine, so they start at three or four times it.
RATE = 4e-4
PUBLISHED = {
    "esd": {"schedule": "published", "sampling_steps": 50, "batch": 1, "learning_rate": RATE},
    "ablate": {
        "schedule": "published",
        "sampling_steps": 25,
        "batch": 4,
        "steps": 100,
        "learning_rate": RATE,
        "selection": "cross-attention-kv",
    },
}
OURS = {
    "esd": {"steps": 60, "batch": 4, "trajectories": 10, "sampling_steps": 20, "learning_rate": 3 * RATE},
    "ablate": {"steps": 60, "batch": 4, "trajectories": 24, "sampling_steps": 25, "learning_rate": 4 * RATE},
}


@dataclass
class Figures:
    """What was measured, a list for each name: one value for each concept and seed."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **measured: float) -> None:
        """One build's figures."""
        for name, value in measured.items():
            self.values.setdefault(name, []).append(value)

    def mean(self, name: str) -> float:
        """Mean over builds."""
        found = self.values[name]
        return sum(found) / len(found)


def compare(bench: Bench, method: str, arguments: argparse.Namespace) -> Figures:
    """Every concept and seed, published and ours; progress on stderr."""
    figures = Figures()
    concepts = CONCEPTS[: arguments.concepts]
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory(prefix="distil-") as published_cache:
            pictures: tuple[int, float] | None = None
            for number, concept in enumerate(concepts):
                edit = published_edit(method, concept, arguments)
                with tempfile.TemporaryDirectory(prefix="distil-") as empty:
                    cache = Path(published_cache if method == "ablate" else empty)
                    built = bench.build(edit, seed, cache)
                    if method == "ablate" and pictures is None:
                        _, evals, seconds = bench.build(edit, seed, cache)
                        pictures = built[1] - evals, built[2] - seconds
                    elif pictures is not None:
                        built = built[0], built[1] + pictures[0], built[2] + pictures[1]
                measured = figures_of("published", built, bench.judge(concept, seed, built[0]))
                edit = {**edit_of(method, concept), **OURS[method]}
                with tempfile.TemporaryDirectory(prefix="distil-") as empty:
                    built = bench.build(edit, seed, Path(empty))
                    if method == "ablate":
                        other = edit_of(method, concepts[(number + 1) % len(concepts)])
                        _, second, _ = bench.build({**other, **OURS[method]}, seed, Path(empty))
                        measured["evals_second"] = second
                measured |= figures_of("ours", built, bench.judge(concept, seed, built[0]))
                base_erased, base_preserved = bench.judge(concept, seed, {})
                figures.add(**measured, erased_base=base_erased, preserved_base=base_preserved)
                print(f"{method} {concept} {seed}: {_rounded(measured)}", file=sys.stderr, flush=True)
    return figures


def published_edit(method: str, concept: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The edit on the published schedule, shortened for a try."""
    edit = {**edit_of(method, concept), **PUBLISHED[method]}
    edit["steps"] = min(edit.get("steps", FULL_STEPS), arguments.published_steps)
    return edit | ({"trajectories": arguments.images} if method == "ablate" else {})


def figures_of(
    side: str, built: tuple[dict[str, Any], int, float], judged: tuple[float, float]
) -> dict[str, float]:
    """One build's figures by name."""
    return {
        f"evals_{side}": built[1],
        f"wall_{side}": built[2],
        f"erased_{side}": judged[0],
        f"preserved_{side}": judged[1],
    }


def edit_of(method: str, concept: str) -> dict[str, Any]:
    """The edit without its settings."""
    if method == "esd":
        return {"edit": "erase", "method": "esd", "concept": concept}
    return {"edit": "ablate", "concept": concept, "anchor": ANCHOR}


def summary(figures: Figures) -> dict[str, Any]:
    """Means, ratios of sums, and intervals."""
    values = figures.values
    found: dict[str, Any] = {
        "evals_ratio": sum(values["evals_ours"]) / sum(values["evals_published"]),
        "wall_ratio": sum(values["wall_ours"]) / sum(values["wall_published"]),
        "evals_ours": figures.mean("evals_ours"),
        "evals_published": figures.mean("evals_published"),
    }
    if "evals_second" in values:
        found["second_evals_ratio"] = sum(values["evals_second"]) / sum(values["evals_published"])
    for name in ("erased", "preserved"):
        for side in ("ours", "published", "base"):
            found[f"{name}_{side}"] = figures.mean(f"{name}_{side}")
    found["intervals"] = {
        **{
            f"{name}_{side}": bootstrap(values[f"{name}_{side}"])
            for name in ("erased", "preserved")
            for side in ("ours", "published")
        },
        **{
            f"{name}_ours_minus_published": bootstrap(
                [a - b for a, b in zip(values[f"{name}_ours"], values[f"{name}_published"], strict=True)]
            )
            for name in ("erased", "preserved")
        },
    }
    found["builds"] = len(values["evals_ours"])
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concepts", type=int, default=5, help="how many of the objects")
    parser.add_argument("--seeds", type=int, default=3, help="builds of each concept")
    parser.add_argument("--trials", type=int, default=25, help="pictures of each build's own concept")
    parser.add_argument("--published-steps", type=int, default=FULL_STEPS, help="fewer make a try")
    parser.add_argument("--images", type=int, default=FULL_IMAGES, help="anchor pictures as published")
    parser.add_argument("--only", choices=["esd", "ablate"], help="one of the two")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of judged pictures")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    bench = Bench(arguments.trials, arguments.first_seed)
    figures: dict[str, Any] = {
        method: summary(compare(bench, method, arguments))
        for method in ("esd", "ablate")
        if arguments.only in (None, method)
    }
    figures["full"] = arguments.published_steps >= FULL_STEPS and arguments.images >= FULL_IMAGES
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
