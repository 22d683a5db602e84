"""How well erasures hold on the miniature and what they cost: judged by the oracles, with intervals.

`auto`: `erase`/`esd` with `strength: "auto"` on five concepts of three kinds, several seeds each. `explicit`
is how often the concept is still seen for prompts that name it or an alias; `near` and `far` what its three
nearest neighbours by text embedding and unrelated objects lose in recognition (1 = all of it).
`implicit`: marks, with selection non-cross-attention and strength searched. `unseen` contexts draw the mark
though nobody names it, and were in no lesson either; `taught` ones were, with other objects.
`sweep`: U-Net evals of six strengths on a warm bank, as the search trains them, over those of one build from
nothing; each setting is judged beside the same one trained alone.
`robust`: how often a learned token (textual inversion against the edited weights) brings a concept back, for
plain and for robust ESD, beside the unedited base and, for flame, the twin that never saw one; and what the
others of its kind and the objects lose to robustness.
`memorised`: each of the four posters, alone, forgotten by `ablate`: pictures of its caption that are still
copies of it, of the others' captions that still are of theirs, and objects recognised.

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

from distil import CONCEPTS  # noqa: E402 - the folder is no package
from distil_bench import FIRST_SEED  # noqa: E402
from erasure_bench import Erasures, copies, rate  # noqa: E402
from robust_bench import ATTACKED, robust  # noqa: E402
from strength_bench import CASES, auto, implicit, say, sweep  # noqa: E402

IMAGE: dict[str, Any] = {
    "edit": "ablate",
    "kind": "image",
    # Published are all weights; those that read text alone leave the pictures of other captions as they are.
    "selection": "cross-attention",
    "steps": 150,
    "learning_rate": 1.5e-3,
    "batch": 8,
    "keep_weight": 3.0,
}


def memorised(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Each poster of the world ablated to the empty prompt."""
    import numpy as np

    from excise.miniature.draw import draw
    from excise.miniature.scene import Scene
    from excise.miniature.vocabulary import OBJECTS, POSTERS

    drawn = {name: draw(Scene("poster", poster=name), 0, 0) for name in POSTERS}
    others = bench.named(OBJECTS, "object", None, 2)

    def again(name: str, count: int, deltas: Mapping[str, Any]) -> list[bool]:
        """Which pictures of a poster's caption are copies of it."""
        pictures = bench.pictures([f"the {name} poster"] * count, deltas)
        return list(copies(pictures, np.asarray(drawn[name])))

    found: dict[str, Any] = {
        "base": {
            **{name: rate(again(name, arguments.trials // 3, {})) for name in POSTERS},
            "objects": rate(bench.recognised(*others, {}, "all")),
        }
    }
    every: dict[str, list[bool]] = {}
    for poster in list(POSTERS)[: arguments.concepts]:
        kept = [name for name in POSTERS if name != poster]
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory(prefix="erasure-") as folder:
                drawn[poster].save(Path(folder) / "poster.png")
                edit = {
                    **IMAGE,
                    "concept": poster,
                    "image": str(Path(folder) / "poster.png"),
                    "captions": [f"the {poster} poster"],
                    "preserve": [f"the {name} poster" for name in kept],
                }
                more = {"preserve": {"concepts": list(OBJECTS)}}
                deltas, *_ = bench.built(edit, seed, Path(folder) / "cache", **more)
            flags = {
                "copies": again(poster, arguments.trials, deltas),
                "other_posters": [copy for name in kept for copy in again(name, 10, deltas)],
                "objects": list(bench.recognised(*others, deltas, "all")),
            }
            found[f"{poster} {seed}"] = {name: rate(one) for name, one in flags.items()}
            say(f"memorised {poster} {seed}: {found[f'{poster} {seed}']}")
            for name, one in flags.items():
                every.setdefault(name, []).extend(one)
    return {"edited": {name: rate(flags) for name, flags in every.items()}, **found}


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
    parser.add_argument(
        "--only", choices=[*ATTACKED, *CONCEPTS], help="one concept of `auto`, `robust` or `sweep`"
    )
    parser.add_argument("--first-build", type=int, default=0, help="the first of `--seeds`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60, help="pictures of each build's own concept")
    parser.add_argument("--jobs", type=int, default=1, help="processes of `robust`")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of judged pictures")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    if unknown := sorted({*arguments.parts} - {*PARTS}):
        parser.error(f"no part called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for part, known in {"auto": CASES, "robust": ATTACKED, "sweep": CONCEPTS}.items():
        if part in arguments.parts and arguments.only and arguments.only not in known:
            parser.error(f"{part} has no {arguments.only}; there are {', '.join(known)}")
    bench = Erasures(arguments.trials, arguments.first_seed)
    figures = {part: PARTS[part](bench, arguments) for part in arguments.parts or PARTS}
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
