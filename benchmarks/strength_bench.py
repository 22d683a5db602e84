"""Erasures whose strength is searched, on the miniature: what goes, what stays, and what a sweep costs.

Parts `auto`, `implicit` and `sweep` of erasure.py. Each edit is judged in pictures of release seeds, beside
the base on the same prompts and seeds; its search looked at other seeds. Intervals are 95 % bootstraps over
builds, and exact ones (Clopper-Pearson) where pictures of all builds are counted together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from distil import CONCEPTS, OURS
from distil_bench import Counting, bootstrap
from erasure_bench import STEPS, Erasures, names_of

SEARCHED: dict[str, Any] = {
    "edit": "erase",
    "method": "esd",
    "strength": "auto",
    "negative_guidance": 2.0,
    "steps": 60,
    "learning_rate": 1.6e-3,
    "batch": 8,
    "sampling_steps": 20,
    "keep_weight": 4.0,
}
CASES: dict[str, dict[str, Any]] = {
    "star": {"kind": "object", "aliases": ["pentastar"]},
    # A style is kept apart from all others and all objects: in 60 steps not half of that is seen once.
    "dotted": {"kind": "style", "aliases": ["mirelo"], "steps": 150},
    "crack": {"kind": "content", "aliases": ["fracture", "cracked"]},
    "fish": {"kind": "object", "aliases": ["trout"]},
    "heart": {"kind": "object", "aliases": ["valentine"]},
}
MARKS = ("flame", "crack", "spill")
PLACED = ("house", "tree", "ball", "boat")  # objects at the contexts that are judged
TAUGHT_WITH = ("star", "moon", "heart", "fish", "tent")  # and at those that are taught


def auto(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Strength searched for several concepts of three kinds, with several seeds each."""
    concepts = [arguments.only] if arguments.only else [*CASES][: arguments.concepts]
    judged = {concept: Judged(bench, concept, arguments.trials) for concept in concepts}
    rows: dict[str, list[float]] = {}
    builds: dict[str, Any] = {}
    explicit: list[bool] = []
    lost_near: dict[str, list[float]] = {}
    for seed in range(arguments.first_build, arguments.first_build + arguments.seeds):
        for concept, one in judged.items():
            edit = {**SEARCHED, **CASES[concept], "concept": concept}
            more = {"gates": one.gates, "preserve": {"concepts": one.kept}}
            with tempfile.TemporaryDirectory(prefix="erasure-") as cache:
                deltas, evals, _, record = bench.built(edit, seed, Path(cache), **more)
            after, lost = one.look(deltas)
            explicit += after.tolist()
            each = dict(zip(one.near, lost["near"].reshape(len(one.near), -1), strict=True))
            for name, part in each.items():
                lost_near.setdefault(f"{concept}: {name}", []).extend(part)
            found = {
                "explicit": float(after.mean()),
                **{name: float(flags.mean()) for name, flags in lost.items()},
                "evals": float(evals),
                "settings": float(len(record["strength"]["tried"])),
            }
            for name, value in found.items():
                rows.setdefault(name, []).append(value)
            builds[f"{concept} {seed}"] = {
                **found,
                "each_near": {name: round(float(part.mean()), 4) for name, part in each.items()},
                "base": one.shown,
                "chosen": record["strength"]["chosen"],
            }
            say(f"auto {concept} {seed}: {builds[f'{concept} {seed}']}")
            say(f"  tried {record['strength']['tried']}")
    each_near = {name: float(np.mean(values)) for name, values in lost_near.items()}
    worst = max(each_near, key=lambda name: each_near[name])
    return {
        "mean_low_high": means(rows),
        "explicit_seen": [sum(explicit), len(explicit), *exact(sum(explicit), len(explicit))],
        "worst_near": {"which": worst, "loss": each_near[worst], "interval": bootstrap(lost_near[worst])},
        "each_near": each_near,
        "builds": builds,
    }


class Judged:
    """A concept with what is looked at: its own prompts, near neighbours, what is unrelated; the base's."""

    def __init__(self, bench: Erasures, concept: str, trials: int) -> None:
        kind, aliases = CASES[concept]["kind"], CASES[concept]["aliases"]
        words = [concept, *aliases]
        ranked = bench.neighbours(concept, kind, aliases)
        far = ranked[3:] if kind == "object" else list(names_of("object"))
        self._bench, self.near = bench, ranked[:3]  # of marks there are but two others
        # What its own kind has besides, and all objects: an edit of a style must not spoil them.
        others = dict.fromkeys([*names_of(kind), *names_of("object")])
        self.kept = [name for name in others if name != concept]
        kept = {"concepts": self.near, "kind": kind, "max_loss": 0.05, "steps": STEPS}
        self.gates = [erased_gate(bench, concept, kind, words), {"gate": "preserved", **kept}]
        self._asked = bench.named(words, kind, concept, -(-trials // len(words)))
        self._beside = {
            "near": bench.named(self.near, kind, None, -(-trials // len(self.near))),
            "far": bench.named(far, "object", None, -(-trials // len(far))),
        }
        self._base = {name: looked(bench, name, cell, {}) for name, cell in self._beside.items()}
        self.shown = float(looked(bench, "explicit", self._asked, {}).mean())

    def look(self, deltas: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Which pictures still show the concept, and what each other one lost in recognition (-1, 0, 1)."""
        lost = {
            name: self._base[name].astype(float) - looked(self._bench, name, cell, deltas)
            for name, cell in self._beside.items()
        }
        return looked(self._bench, "explicit", self._asked, deltas), lost


def implicit(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Marks erased where nobody names them: some contexts are taught, others are not, and both are judged."""
    from excise.miniature.contexts import CONTEXTS
    from excise.miniature.vocabulary import OBJECTS

    found: dict[str, Any] = {"base": {}, "builds": {}}
    rows: dict[str, list[float]] = {}
    for mark in MARKS[: arguments.concepts]:
        words = [c.word for c in CONTEXTS.values() if c.mark == mark and c.rate >= 0.25]
        taught, unseen = words[::2], words[1::2]
        aliases = list(named_by(mark))[1:]
        others = [name for name in MARKS if name != mark]
        cells = {
            "unseen": at_contexts(unseen, PLACED, mark, arguments.trials),
            "taught": at_contexts(taught, PLACED, mark, arguments.trials // 2),
            "explicit": bench.named([mark, *aliases], "content", mark, -(-arguments.trials // 3)),
            "objects": bench.named(OBJECTS, "object", None, 5),
            "marks": bench.named(others, "content", None, 20),
        }
        base = {name: looked(bench, name, cell, {}) for name, cell in cells.items()}
        found["base"][mark] = {name: float(flags.mean()) for name, flags in base.items()}
        lesson = [f"a {name} at {word}" for word in taught for name in TAUGHT_WITH]
        edit = {**SEARCHED, **IMPLICIT, "concept": mark, "aliases": aliases, "implicit": lesson}
        gate = {"gate": "implicit", "concept": mark, "max_rate": 0.05, "steps": STEPS}
        gates = [
            erased_gate(bench, mark, "content", [mark, *aliases]),
            {**gate, "prompts": [f"a {name} at {word}" for word in taught for name in ("ring", "box")]},
            {"gate": "preserved", "concepts": others, "kind": "content", "max_loss": 0.1, "steps": STEPS},
        ]
        kept = {"concepts": [*OBJECTS, *(word for name in others for word in named_by(name))]}
        for seed in range(arguments.first_build, arguments.first_build + arguments.seeds):
            with tempfile.TemporaryDirectory(prefix="erasure-") as cache:
                deltas, evals, _, record = bench.built(edit, seed, Path(cache), gates=gates, preserve=kept)
            after = {name: looked(bench, name, cell, deltas) for name, cell in cells.items()}
            row = {name: float(after[name].mean()) for name in ("unseen", "taught", "explicit")}
            row |= {
                f"{name}_lost": float(base[name].mean() - after[name].mean()) for name in ("objects", "marks")
            }
            for name, value in {**row, "evals": float(evals)}.items():
                rows.setdefault(name, []).append(value)
            found["builds"][f"{mark} {seed}"] = {**row, "chosen": record["strength"]["chosen"]}
            say(f"implicit {mark} {seed}: {row} {record['strength']['tried']}")
    return {"mean_low_high": means(rows), **found}


IMPLICIT: dict[str, Any] = {
    "kind": "content",
    "selection": "non-cross-attention",
    "negative_guidance": 1.0,
    "steps": 200,
    "learning_rate": 6e-4,
    "keep_weight": 4.0,
}


def sweep(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Six strengths on a warm bank, as the search trains them, beside each trained alone."""
    concepts = [arguments.only] if arguments.only else CONCEPTS[: arguments.concepts]
    builds = {
        f"{concept} {seed}": swept_build(bench, concept, seed)
        for concept in concepts
        for seed in range(arguments.first_build, arguments.first_build + arguments.seeds)
    }
    return {**swept_summary(builds.values()), "builds": builds}


def swept_summary(builds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean costs; what a sweep's settings erase and keep less than alone, with intervals over all of them."""
    every = list(builds)
    rows: dict[str, list[float]] = {
        f"{name}_swept_minus_alone": [
            row[f"{name}_swept"] - row[f"{name}_alone"] for one in every for row in one["settings"].values()
        ]
        for name in ("erased", "preserved")
    }
    costs = {name: float(np.mean([one[name] for one in every])) for name in every[0] if name != "settings"}
    return {**costs, **means(rows)}


def swept_build(bench: Erasures, concept: str, seed: int) -> dict[str, Any]:
    """What one build, and a sweep on its bank, cost; each setting's rates, swept and alone."""
    from compiler.strength import ladder

    edit = {"edit": "erase", "method": "esd", "concept": concept, **OURS["esd"]}
    settings: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="erasure-") as cache:
        _, one, seconds = bench.build(edit, seed, Path(cache))
        etas = ladder(bench.spec(edit, seed).edits[0])
        swept, evals, wall = swept_settings(bench, edit, etas, seed, Path(cache))
        for eta in etas:
            alone, _, _ = bench.build({**edit, "negative_guidance": eta}, seed, Path(cache))
            row = settings.setdefault(str(eta), {})
            for name, deltas in (("swept", swept[eta]), ("alone", alone)):
                row[f"erased_{name}"], row[f"preserved_{name}"] = bench.judge(concept, seed, deltas)
            say(f"sweep {concept} {seed} eta {eta}: {row}")
    costs = {"build": one, "six": evals, "evals_ratio": evals / one, "wall_ratio": wall / seconds}
    return {**costs, "settings": settings}


def swept_settings(
    bench: Erasures, edit: Mapping[str, Any], etas: Sequence[float], seed: int, cache: Path
) -> tuple[dict[float, Any], int, float]:
    """The changes of each setting, evals and seconds of all; the edit's own first, then its neighbours."""
    import torch

    from compiler import esd
    from compiler.cache import StageCache
    from compiler.esd_plan import Requests
    from compiler.passes import PassContext, discover
    from compiler.progress import Silent
    from compiler.seeds import reproducible
    from compiler.sweep import Sweep
    from compiler.teacher import Teacher

    spec = bench.spec(edit, seed)
    (own,) = spec.edits
    context = PassContext(spec, bench.base, {}, seed, torch.device("cpu"), StageCache(cache), Silent())
    with Counting() as counted, reproducible():
        start = time.perf_counter()
        teacher = Teacher(context)
        (engine,) = (one for one in discover() if one.accepts(own))
        names = engine.targets([own], bench.base.weights("unet").entries)
        learnt = esd.lesson([own], Requests.of([own], spec, {own.id: ()}), teacher)
        trained = Sweep(learnt, teacher.unet, names, context, 0)
        order = sorted(etas, key=lambda eta: (abs(eta - own.negative_guidance), eta))
        swept = {eta: trained.train(eta).deltas for eta in order}
        seconds = time.perf_counter() - start
    return swept, counted.evals, seconds


def named_by(mark: str) -> tuple[str, ...]:
    """The words that name a mark, its own first."""
    from excise.miniature.vocabulary import MARKS as KNOWN

    return KNOWN[mark].words


def erased_gate(bench: Erasures, concept: str, kind: str, words: Sequence[str]) -> dict[str, Any]:
    """The gate of a spec on a concept by all of its names."""
    prompts = bench.named(words, kind, concept, 5)[0]
    return {"gate": "erased", "concept": concept, "prompts": prompts, "max_rate": 0.02, "steps": STEPS}


def at_contexts(
    words: Sequence[str], objects: Sequence[str], mark: str, count: int
) -> tuple[list[str], list[str]]:
    """`count` prompts that put objects where the mark appears unasked, and the mark as label."""
    prompts = [f"a {name} at {word}" for name in objects for word in words]
    prompts = [prompts[number % len(prompts)] for number in range(count)]
    return prompts, [mark] * count


def looked(bench: Erasures, name: str, cell: tuple[list[str], list[str]], deltas: Mapping[str, Any]) -> Any:
    """Per picture: what must go counts where any oracle sees it, what must stay where all do."""
    gone = name in ("explicit", "unseen", "taught")
    return bench.recognised(*cell, deltas, "any" if gone else "all")


def means(rows: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The mean over builds of each row, with its interval."""
    return {name: [sum(values) / len(values), *bootstrap(values)] for name, values in rows.items()}


def exact(seen: int, of: int) -> list[float]:
    """95 % interval of a rate."""
    from compiler.gates.statistics import lower_bound, upper_bound

    return [lower_bound(seen, of, 0.975), upper_bound(seen, of, 0.975)]


def say(line: str) -> None:
    """Progress, beside the results."""
    print(line, file=sys.stderr, flush=True)
