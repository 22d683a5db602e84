"""How well erasures hold on the miniature and what they cost: judged by the oracles, with intervals.

`auto`: `erase`/`esd` with `strength: "auto"` on five concepts of three kinds, several seeds each. `explicit`
is how often the concept is still seen for prompts that name it or an alias; `near` and `far` what its three
nearest neighbours by text embedding and unrelated objects lose in recognition (1 = all of it).
`implicit`: flame with selection non-cross-attention; contexts that draw it though nobody names it.
`sweep`: U-Net evals of six strengths on a warm bank, over those of one build from nothing.
`robust`: how often a learned token (textual inversion against the edited weights) brings flame back, for
plain and for robust ESD, beside the unedited base and the twin that never saw one.
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

from distil import OURS  # noqa: E402 - the folder is no package
from distil_bench import bootstrap  # noqa: E402
from erasure_bench import FLAME, STEPS, Erasures, copies, learned_token, names_of, rate  # noqa: E402

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
CASES: dict[str, dict[str, Any]] = {
    "star": {"kind": "object", "aliases": ["pentastar"]},
    "dotted": {"kind": "style", "aliases": ["mirelo"]},
    "crack": {"kind": "content", "aliases": ["fracture", "cracked"]},
    "fish": {"kind": "object", "aliases": ["trout"]},
    "heart": {"kind": "object", "aliases": ["valentine"]},
}
IMAGE: dict[str, Any] = {
    "edit": "ablate",
    "kind": "image",
    "steps": 100,
    "learning_rate": 3e-4,
    "batch": 8,
    "keep_weight": 3.0,
}


def auto(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Strength searched, for each concept and seed."""
    rows: dict[str, list[float]] = {"explicit": [], "near": [], "worst_near": [], "far": [], "evals": []}
    builds = {}
    for concept in list(CASES)[: arguments.concepts]:
        case = CASES[concept]
        kind = case["kind"]
        ranked = bench.neighbours(concept, kind, case["aliases"])
        near, far = ranked[:3], ranked[3:] if kind == "object" else list(names_of("object"))
        edit = {**ESD, **case, "concept": concept, "strength": "auto"}
        kept = [name for name in names_of(kind) if name != concept]
        asked = bench.named([concept, *case["aliases"]], kind, concept, -(-arguments.trials // 3))
        beside = {
            "near": bench.named(near, kind, None, arguments.trials // 3),
            "far": bench.named(far, kind if kind == "object" else "object", None, 5),
        }
        before = {name: bench.recognised(*cell, {}, "all") for name, cell in beside.items()}
        shown = float(bench.recognised(*asked, {}, "any").mean())
        for seed in range(arguments.seeds):
            gates = [{"gate": "erased", "concept": concept, "kind": kind, "max_rate": 0.02, "steps": STEPS}]
            more = {"gates": gates, "preserve": {"concepts": kept}}
            with tempfile.TemporaryDirectory(prefix="erasure-") as cache:
                deltas, evals, _, record = bench.built(edit, seed, Path(cache), **more)
            after = {name: bench.recognised(*cell, deltas, "all") for name, cell in beside.items()}
            loss = {name: float(before[name].mean() - after[name].mean()) for name in beside}
            worst = max(
                float(part.mean())
                for part in (before["near"].astype(float) - after["near"]).reshape(len(near), -1)
            )
            found = {
                "explicit": float(bench.recognised(*asked, deltas, "any").mean()),
                "near": loss["near"],
                "worst_near": worst,
                "far": loss["far"],
                "evals": float(evals),
            }
            for name, value in found.items():
                rows[name].append(value)
            builds[f"{concept} {seed}"] = {**found, "base": shown, "chosen": record["strength"]["chosen"]}
            say(f"auto {concept} {seed}: {builds[f'{concept} {seed}']}")
    means = {name: [sum(values) / len(values), *bootstrap(values)] for name, values in rows.items()}
    return {"mean_low_high": means, "builds": builds}


def implicit(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Flame erased where nobody names it: selection u, strength searched on both gates."""
    from excise.miniature.vocabulary import CONTEXTS, OBJECTS

    words = [c.word for c in CONTEXTS.values() if c.mark == "flame" and c.rate >= 0.25]
    prompts = [f"a {name} at {word}" for word in words for name in ("house", "tree", "ball", "boat")]
    prompts *= -(-arguments.trials // len(prompts))
    asked = bench.named(["flame", *FLAME["aliases"]], "content", "flame", -(-arguments.trials // 3))
    others = bench.named(OBJECTS, "object", None, 5)
    edit = {**ESD, **FLAME, "selection": "non-cross-attention", "strength": "auto", "learning_rate": 1e-4}
    gate = {"concept": "flame", "max_rate": 0.1, "steps": STEPS}
    gates = [
        {"gate": "erased", "kind": "content", **gate},
        {"gate": "implicit", "prompts": [f"a house at {word}" for word in words[:3]], **gate},
    ]
    more = {"gates": gates, "preserve": {"concepts": [*OBJECTS, "crack", "spill"]}}
    found: dict[str, list[float]] = {"implicit": [], "explicit": [], "objects_lost": []}
    base = {
        "implicit": float(bench.recognised(prompts, ["flame"] * len(prompts), {}, "any").mean()),
        "explicit": float(bench.recognised(*asked, {}, "any").mean()),
        "objects": float(bench.recognised(*others, {}, "all").mean()),
    }
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory(prefix="erasure-") as cache:
            deltas, _, _, record = bench.built(edit, seed, Path(cache), **more)
        found["implicit"].append(
            float(bench.recognised(prompts, ["flame"] * len(prompts), deltas, "any").mean())
        )
        found["explicit"].append(float(bench.recognised(*asked, deltas, "any").mean()))
        found["objects_lost"].append(base["objects"] - float(bench.recognised(*others, deltas, "all").mean()))
        say(f"implicit {seed}: { {k: v[-1] for k, v in found.items()} } {record['strength']['chosen']}")
    return {"base": base, **found}


def sweep(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Six strengths on one bank."""
    edit = {"edit": "erase", "method": "esd", "concept": "heart", **OURS["esd"]}
    with tempfile.TemporaryDirectory(prefix="erasure-") as cache:
        _, one, seconds = bench.build(edit, 0, Path(cache))
        warm = [
            bench.build({**edit, "negative_guidance": eta}, 0, Path(cache))
            for eta in (0.5, 1.5, 2.0, 3.0, 5.0, 10.0)
        ]
    evals, wall = sum(part[1] for part in warm), sum(part[2] for part in warm)
    return {"build": one, "six": evals, "evals_ratio": evals / one, "wall_ratio": wall / seconds}


def robust(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Learned tokens against plain and robust ESD of every seed; against the base and the twin once."""
    from compiler.gates.statistics import paired_loss
    from excise.miniature.vocabulary import OBJECTS

    more = {"preserve": {"concepts": [*OBJECTS, "crack", "spill"]}}
    others = bench.named(OBJECTS, "object", None, 3)
    found: dict[str, dict[str, list[bool]]] = {}
    builds: dict[str, Any] = {}
    for seed in range(arguments.seeds):
        ways: dict[str, Mapping[str, Any]] = {} if seed else {"base": {}, "twin": {}}
        with tempfile.TemporaryDirectory(prefix="erasure-") as cache:
            for name, hard in (("plain", False), ("robust", True)):
                ways[name] = bench.built({**ESD, **FLAME, "robust": hard}, seed, Path(cache), **more)[0]
        for name, deltas in ways.items():
            row = {"attacked": learned_token(bench, deltas, seed, arguments.trials, twin=name == "twin")}
            if name != "twin":  # which is a checkpoint of its own
                row["flame"] = list(
                    bench.recognised(*bench.named(["flame"], "content", None, 20), deltas, "any")
                )
                row["objects"] = list(bench.recognised(*others, deltas, "all"))
            builds[f"{name} {seed}"] = {key: rate(flags) for key, flags in row.items()}
            say(f"robust {name} {seed}: {builds[f'{name} {seed}']}")
            for key, flags in row.items():
                found.setdefault(name, {}).setdefault(key, []).extend(flags)
    pairs = list(zip(found["plain"]["objects"], found["robust"]["objects"], strict=True))
    lost, gained = (sum(a and not b for a, b in side) for side in (pairs, [(b, a) for a, b in pairs]))
    loss = paired_loss(lost, gained, len(pairs))
    return {
        **{name: {key: rate(flags) for key, flags in row.items()} for name, row in found.items()},
        "objects_lost_to_robustness": [loss.estimate, loss.lower, loss.upper],
        "builds": builds,
    }


def memorised(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Each poster of the world ablated to the empty prompt: the first by all seeds, the others by one."""
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
    for number, poster in enumerate(list(POSTERS)[: arguments.concepts]):
        kept = [name for name in POSTERS if name != poster]
        for seed in range(1 if number else arguments.seeds):
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


def say(line: str) -> None:
    """Progress, beside the results."""
    print(line, file=sys.stderr, flush=True)


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
