"""ESD and concept ablation as published against ours, on the miniature, in one process.

For each concept and seed both are built from an empty cache on the same base, then judged by the oracles in
pictures of the same prompts and seeds: `erased` is how often the concept is still recognised for its own
prompts, `preserved` how often other objects are for theirs. Ratios are ours over published: `evals_ratio` of
U-Net evals (a backward counts two), `wall_ratio` of seconds, banks and loading included. Intervals are 95 %
bootstraps over (concept, seed) pairs. For ablation `second` is another concept on an anchor sampled before.

Usage: python benchmarks/distil.py [--concepts 5] [--seeds 3] [--trials 25] [--json]
A try: --concepts 1 --seeds 1 --trials 5 --published-steps 4 --images 8 (then `"full": false`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONCEPTS = ("heart", "fish", "star", "tree", "moon", "house", "ring", "boat")
OTHERS = ("ball", "box", "tent", "star", "ring", "heart", "moon", "house", "tree", "fish", "boat")
ANCHOR = "ball"
FULL_STEPS, FULL_IMAGES = 200, 1000
# The papers' rates are for Stable Diffusion; a U-Net a two-hundredth of its size wants larger ones. Ours fall
# to zero along a cosine, so they start at twice the mean.
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
    "esd": {"steps": 60, "batch": 4, "trajectories": 10, "sampling_steps": 20, "learning_rate": 4 * RATE},
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


class Bench:
    """The miniature, its oracles, and one sampler whose weights builds are tried in."""

    def __init__(self, trials: int) -> None:
        from compiler.base import open_base
        from compiler.checkpoint import Checkpoint
        from compiler.evaluators import open_evaluators
        from compiler.generate import Sampler
        from excise.embedded import register

        register()
        spec = self.spec({"edit": "erase", "concept": "heart"}, 0)
        self.base: Checkpoint = open_base(spec.base, ROOT)
        self.evaluators = open_evaluators(spec, ROOT)
        self.sampler = Sampler(self.base)
        self.trials = trials

    @staticmethod
    def spec(edit: Mapping[str, Any], seed: int, **more: Any) -> Any:
        """A spec of one edit; `more` are further keys of the document."""
        from editspec import parse_spec

        document = {
            "editspec": 1,
            "name": "distil",
            "base": {"path": "miniature"},
            "seed": seed,
            "edits": [dict(edit)],
            **more,
        }
        return parse_spec(json.dumps(document))

    def build(self, edit: Mapping[str, Any], seed: int, cache: Path) -> tuple[dict[str, Any], int, float]:
        """Changes, evals that were spent, and seconds of one edit with the banks that `cache` holds."""
        return self.built(edit, seed, cache)[:3]

    def built(
        self, edit: Mapping[str, Any], seed: int, cache: Path, **more: Any
    ) -> tuple[dict[str, Any], int, float, dict[str, Any]]:
        """`build` with further keys of the spec, and the pass's record."""
        import torch

        from compiler.cache import StageCache
        from compiler.passes import PassContext, discover
        from compiler.progress import Silent
        from compiler.seeds import reproducible

        spec = self.spec(edit, seed, **more)
        (engine,) = (one for one in discover() if one.accepts(spec.edits[0]))
        context = PassContext(spec, self.base, {}, seed, torch.device("cpu"), StageCache(cache), Silent())
        with Counting() as counted, reproducible():
            start = time.perf_counter()
            result = engine.run(spec.edits, context)
            seconds = time.perf_counter() - start
        return dict(result.deltas), counted.evals, seconds, dict(result.record)

    def judge(self, concept: str, seed: int, deltas: Mapping[str, Any]) -> tuple[float, float]:
        """(how often the concept is still seen by any oracle, how often other objects are by all of them)."""
        from compiler.judging import changed

        others = [name for name in OTHERS if name not in (concept, ANCHOR)]
        with changed(self.sampler.pipeline.unet, deltas):
            erased = self._recognised([concept] * self.trials, seed, any_sees=True)
            kept = self._recognised(
                [others[k % len(others)] for k in range(2 * self.trials)], seed, any_sees=False
            )
        return erased, kept

    def _recognised(self, names: Sequence[str], seed: int, *, any_sees: bool) -> float:
        import numpy as np

        from compiler.generate import Draw, Sampling
        from editspec.templates import TEMPLATES, fill

        templates = TEMPLATES["object"]
        draws = [
            Draw(fill(templates[k % len(templates)], name), 20_000 + 1000 * seed + k)
            for k, name in enumerate(names)
        ]
        images = self.sampler.images(draws, Sampling(5.0, 15))
        flags = np.zeros((len(self.evaluators), len(names)), np.bool_)
        for row, one in enumerate(self.evaluators):
            scores = one.score(images)
            for name in dict.fromkeys(names):
                label = one.label_for(name)
                assert label is not None
                here = np.array([other == name for other in names])
                flags[row, here] = one.shows(scores[here], label)
        return float((flags.any(0) if any_sees else flags.all(0)).mean())


class Counting:
    """Counts evals by watching the U-Net itself: a sample forward is one, with a backward three."""

    def __init__(self) -> None:
        self.evals = 0

    def __enter__(self) -> Counting:
        import torch

        self._forward: Any = torch.nn.Module.__call__
        forward = self._forward

        def watched(module: Any, *args: Any, **kwargs: Any) -> Any:
            if type(module).__name__ == "UNet2DConditionModel":
                self.evals += len(args[0]) * (3 if torch.is_grad_enabled() else 1)
            return forward(module, *args, **kwargs)

        torch.nn.Module.__call__ = watched  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        torch.nn.Module.__call__ = self._forward  # type: ignore[method-assign]


def compare(bench: Bench, method: str, arguments: argparse.Namespace) -> Figures:
    """Every concept and seed, published and ours; progress on stderr."""
    figures = Figures()
    concepts = CONCEPTS[: arguments.concepts]
    for seed in range(arguments.seeds):
        for number, concept in enumerate(concepts):
            measured: dict[str, float] = {}
            for side, settings in (("published", PUBLISHED[method]), ("ours", OURS[method])):
                edit = {**edit_of(method, concept), **settings}
                if side == "published":
                    edit |= {"steps": min(edit.get("steps", FULL_STEPS), arguments.published_steps)}
                    edit |= {"trajectories": arguments.images} if method == "ablate" else {}
                with tempfile.TemporaryDirectory(prefix="distil-") as cache:
                    deltas, evals, seconds = bench.build(edit, seed, Path(cache))
                    if side == "ours" and method == "ablate":
                        other = edit_of(method, concepts[(number + 1) % len(concepts)])
                        _, second, _ = bench.build({**other, **settings}, seed, Path(cache))
                        measured["evals_second"] = second
                erased, preserved = bench.judge(concept, seed, deltas)
                measured |= {
                    f"evals_{side}": evals,
                    f"wall_{side}": seconds,
                    f"erased_{side}": erased,
                    f"preserved_{side}": preserved,
                }
            base_erased, base_preserved = bench.judge(concept, seed, {})
            figures.add(**measured, erased_base=base_erased, preserved_base=base_preserved)
            print(f"{method} {concept} {seed}: {_rounded(measured)}", file=sys.stderr, flush=True)
    return figures


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
    return _rounded(found)


def bootstrap(values: Sequence[float], rounds: int = 2000) -> list[float]:
    """95 % percentile interval of the mean."""
    import numpy as np

    draw = np.random.default_rng(0)
    sample = np.asarray(values)[draw.integers(0, len(values), (rounds, len(values)))].mean(1)
    return [float(edge) for edge in np.quantile(sample, [0.025, 0.975])]


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
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    bench = Bench(arguments.trials)
    figures: dict[str, Any] = {
        method: summary(compare(bench, method, arguments))
        for method in ("esd", "ablate")
        if arguments.only in (None, method)
    }
    figures["full"] = arguments.published_steps >= FULL_STEPS and arguments.images >= FULL_IMAGES
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
