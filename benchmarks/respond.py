"""Responsible phrases as weights on the miniature: "without crack" is obeyed, other prompts stay.

`obeyed`: the share of pictures without the mark, for prompts whose context draws it unasked and that say
the phrase; beside it how often the base and the edited model draw it where it is said and where it is not.
`drift`: how far pictures without the phrase moved, of the contexts themselves and of other prompts, as the
mean distance between base and edited picture in units of the distance between two seeds of the base.

Usage: python benchmarks/respond.py [--trials 60] [--scales 5] [--edit '{"steps": 800}'] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from guide_bench import (  # noqa: E402 - the folder is no package
    NAMES,
    UNSEEN,
    Bench,
    moved,
    options,
    rate,
    say,
    show,
)

from excise.miniature.vocabulary import OBJECTS  # noqa: E402

CONTEXTS = {"crack": ("quake", "ruin"), "spill": ("crime", "kitchen")}
LEARNING = {
    "steps": 1500, "trajectories": 432, "batch": 20, "learning_rate": 1e-2, "schedule": "cosine",
    "optimiser": "muon", "sampling_steps": 15, "timesteps": 15, "selection": "cross-attention-kv",
    "keep_weight": 10,
}  # fmt: skip


def obeyed(bench: Bench) -> dict[str, Any]:
    """Both phrases, and prompts without any."""
    phrases = [
        {
            "text": f"without {mark}",
            # The phrase itself names the mark: more than a negative prompt's must lead away.
            "direction": {"prompt": "a scene", "negative_prompt": mark, "weight": 1.3},
        }
        for mark in CONTEXTS
    ]
    prompts = [f"a {thing} at {word}" for words in CONTEXTS.values() for word in words for thing in NAMES]
    edit = {"edit": "respond", "phrases": phrases, "prompts": prompts, **LEARNING}
    deltas, record = bench.compiled(bench.context(edit))
    found: dict[str, Any] = {"evals": record["evals"]}
    for scale in bench.arguments.scales:
        for mark, words in CONTEXTS.items():
            here = bench.in_turn([f"a {thing} at {word}" for word in words for thing in UNSEEN])
            found[f"without {mark}, guidance {scale:g}"] = _phrase(bench, mark, here, scale, deltas)
        plain = bench.in_turn([f"a photo of a {thing}" for thing in OBJECTS])
        found[f"other prompts, guidance {scale:g}"] = {"drift": moved(bench, plain, scale, deltas)}
        say(str(found))
    return found


def _phrase(bench: Bench, mark: str, prompts: Sequence[str], scale: float, deltas: Any) -> dict[str, Any]:
    """How often the mark is drawn with and without the phrase, and what not saying it costs."""
    said = [f"{prompt} without {mark}" for prompt in prompts]
    seen = {
        f"{who}, {how}": bench.verdicts(bench.pictures(asked, scale, changed)).flags(mark, mark)
        for how, asked in (("said", said), ("not said", prompts))
        for who, changed in (("base", None), ("edited", deltas))
    }
    return {
        "obeyed": rate(np.logical_not(seen["edited, said"])),
        "drawn": {name: rate(flags) for name, flags in seen.items()},
        "drift": moved(bench, prompts, scale, deltas),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options(parser)
    parser.set_defaults(scales=[5.0], sampling_steps=10)
    arguments = parser.parse_args()
    show(obeyed(Bench(arguments)), arguments)


if __name__ == "__main__":
    main()
