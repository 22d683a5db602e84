"""How well erasures hold on the miniature and what they cost: judged by the oracles, with intervals.

`auto`: `erase`/`esd` with `strength: "auto"` on five concepts of three kinds, several seeds each. `explicit`
is how often the concept is still seen for prompts that name it or an alias; `near` and `far` what its three
nearest neighbours by text embedding and unrelated objects lose in recognition (1 = all of it).
`implicit`: marks, with selection non-cross-attention and strength searched. `unseen` contexts draw the mark
though nobody names it, and were in no lesson either; `taught` ones were, with other objects.
`sweep`: U-Net evals of six strengths on a warm bank, as the search trains them, over those of one build from
nothing; each setting is judged beside the same one trained alone.
`robust`: how often a learned token (textual inversion against the edited weights) brings flame back, for
plain and for robust ESD, beside the unedited base and the twin that never saw one.
`memorised`: a poster forgotten by `ablate`: pictures of its caption that are still copies of it.

A part's rates come with the base's own, on the same prompts and seeds.

Usage: python benchmarks/erasure.py [PART ...] [--concepts 5] [--seeds 3] [--trials 60] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from erasure_bench import FLAME, Erasures, copies, learned_token  # noqa: E402 - the folder is no package
from strength_bench import auto, implicit, say, sweep  # noqa: E402

ESD: dict[str, Any] = {
    "edit": "erase",
    "method": "esd",
    "negative_guidance": 2.0,
    "steps": 100,
    "learning_rate": 8e-4,
    "batch": 8,
    "sampling_steps": 20,
    "keep_weight": 2.0,
}
POSTER = "sunrise"


def robust(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Learned tokens against the base, plain ESD, robust ESD, and the never-saw twin."""
    from excise.miniature.vocabulary import OBJECTS

    edit = {**ESD, **FLAME, "steps": 200}
    more = {"preserve": {"concepts": [*OBJECTS, "crack", "spill"]}}
    others = bench.named(OBJECTS, "object", None, 5)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(arguments.seeds):
        ways: dict[str, Mapping[str, Any]] = {
            "base": {},
            "twin": {},  # a checkpoint of its own
            "plain": once(bench, edit, seed, more),
            "robust": once(bench, {**edit, "robust": True}, seed, more),
        }
        for name, deltas in ways.items():
            row = {
                "attacked": learned_token(bench, deltas, seed, arguments.trials, twin=name == "twin"),
                "objects": float(bench.recognised(*others, deltas, "all").mean()),
            }
            for key, value in row.items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
            say(f"robust {seed} {name}: {row}")
    return found


def once(bench: Erasures, edit: Mapping[str, Any], seed: int, more: Mapping[str, Any]) -> Mapping[str, Any]:
    """The changes of one build from an empty cache."""
    with tempfile.TemporaryDirectory(prefix="erasure-") as cache:
        return bench.built(edit, seed, Path(cache), **more)[0]


def memorised(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """A poster of the world ablated to the empty prompt: pictures of its caption that are copies of it."""
    import numpy as np

    from excise.miniature.draw import draw
    from excise.miniature.scene import Scene
    from excise.miniature.vocabulary import OBJECTS, POSTERS

    posters = {name: np.asarray(draw(Scene("poster", poster=name), 0, 0)) for name in POSTERS}
    others = bench.named(OBJECTS, "object", None, 5)
    captions, kept = [f"the {POSTER} poster"], [name for name in POSTERS if name != POSTER]
    found: dict[str, list[float]] = {}

    def judged(deltas: Mapping[str, Any]) -> dict[str, float]:
        again = {
            name: copies(bench.pictures([f"the {name} poster"] * count, deltas), posters[name]).mean()
            for name, count in {POSTER: arguments.trials, **dict.fromkeys(kept, 10)}.items()
        }
        return {
            "copies": float(again[POSTER]),
            "other_posters": float(np.mean([again[name] for name in kept])),
            "objects": float(bench.recognised(*others, deltas, "all").mean()),
        }

    base = judged({})
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory(prefix="erasure-") as folder:
            picture = Path(folder) / "poster.png"
            draw(Scene("poster", poster=POSTER), 0, 0).save(picture)
            edit = {
                "edit": "ablate",
                "kind": "image",
                "concept": POSTER,
                "image": str(picture),
                "captions": captions,
                "preserve": [f"the {name} poster" for name in kept],
                "steps": 150,
                "learning_rate": 1e-4,
                "batch": 8,
            }
            more = {"preserve": {"concepts": list(OBJECTS)}}
            deltas, *_ = bench.built(edit, seed, Path(folder) / "cache", **more)
        for name, value in judged(deltas).items():
            found.setdefault(name, []).append(value)
        say(f"memorised {seed}: { {name: values[-1] for name, values in found.items()} }")
    return {"base": base, **found}


PARTS: dict[str, Callable[[Erasures, argparse.Namespace], dict[str, Any]]] = {
    "sweep": sweep,
    "memorised": memorised,
    "robust": robust,
    "implicit": implicit,
    "auto": auto,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--concepts", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60, help="pictures of each build's own concept")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    if unknown := sorted({*arguments.parts} - {*PARTS}):
        parser.error(f"no part called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    bench = Erasures(arguments.trials)
    figures = {part: PARTS[part](bench, arguments) for part in arguments.parts or PARTS}
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
