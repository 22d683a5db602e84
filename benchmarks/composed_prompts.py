"""Erasures inside composed prompts, on the miniature: what else is named stays, so do a compound's words.

Two cases. "in_prompt": prompts name the erased concept beside another object. "compound": "moon boat" is
erased; its own prompts, and those of "moon" and "boat", which exist alone. `shows_other`: both oracles see
what must stay; `shows_concept`: both see what must go; each a share of pictures. `kept`: share of
the prompts that show the other in the base, in most of their pictures, that still do, edited, with the same
seeds. Rates are [share, low, high, n] with Wilson's interval at 95 %; `loss` of `shows_other` is paired, with
Tango's bounds. They pool the pictures of all builds; `builds` has `kept` and `shows_concept` of each, and
`in_prompt_mean` their means over concepts and seeds, with bootstrapped intervals.

A composed prompt draws two small things side by side, which the oracles, trained to see one, often miss: of
27 pictures of "a star beside ..." that show both to the eye, their heads for second things found the other in
11 and the star in 8. So each half of a picture is judged too, its thing in the middle at its usual size: the
other is then found in 23. `unnamed` tells what that invents: how often both oracles see, in the base's
pictures, an object that the prompt does not name (none of 324 in a trial; either oracle alone saw 12).

Usage: python benchmarks/composed_prompts.py [--concepts 5] [--seeds 3] [--trials 60] [--only esd] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from composed_views import Looks, halves  # noqa: E402 - the folder is no package

if TYPE_CHECKING:
    from compiler.generate import Draw

CONCEPTS = ("star", "heart", "tree", "fish", "house")
OTHERS = ("moon", "ball", "tent", "boat", "box", "ring", "heart", "tree", "house", "fish")
COMPOUND, PARTS = "moon boat", ("moon", "boat")
COMPOSED = ("a {} beside a {other}", "a {other} beside a {}", "a {} with a {other}")
FIRST_SEED = 60_000
PICTURES = 3  # of each composed prompt
# The base's learning rate is for Stable Diffusion; a U-Net a two-hundredth of its size wants a larger one.
METHODS: dict[str, dict[str, Any]] = {
    "esd": {
        "method": "esd",
        "negative_guidance": 2.0,
        "steps": 100,
        "batch": 4,
        "trajectories": 10,
        "learning_rate": 1.6e-3,
        "sampling_steps": 20,
        "keep_weight": 2.0,
    },
    "esd-composed": {},
    "closed-form": {"method": "closed-form", "anchor": "box"},
}

METHODS["esd-composed"] = {**METHODS["esd"], "composed": 40}


@dataclass(frozen=True)
class Case:
    """An edited concept, and what is drawn and looked for: (prompt, label group, name) for each picture."""

    concept: str
    preserve: tuple[str, ...]
    asked: tuple[tuple[str, str, str], ...]
    """What must stay."""
    gone: tuple[tuple[str, str, str], ...]
    """What must go."""
    pictures: int = 1
    """Of each prompt, one after the other."""
    halves: bool = False
    """Whether pictures show two things, side by side."""


def in_prompt_case(concept: str, trials: int) -> Case:
    """Prompts that name the concept beside each of the other objects in turn, three pictures of each."""
    others = [name for name in OTHERS if name != concept]
    asked, gone = [], []
    for number in range(-(-trials // PICTURES)):
        other = others[number % len(others)]
        template = COMPOSED[(number + number // len(others)) % len(COMPOSED)]
        prompt = template.format(concept, other=other)
        asked += [(prompt, "object", other)] * PICTURES
        gone += [(prompt, "object", concept)] * PICTURES
    return Case(concept, tuple(others), tuple(asked), tuple(gone), PICTURES, halves=True)


def compound_case(trials: int) -> Case:
    """The compound's own prompts, and those of its two words."""
    from editspec.templates import TEMPLATES, fill

    templates = TEMPLATES["object"]
    gone = [(fill(templates[k % 5], COMPOUND), "object", COMPOUND) for k in range(trials)]
    asked = [(fill(templates[k // 2 % 5], PARTS[k % 2]), "object", PARTS[k % 2]) for k in range(2 * trials)]
    return Case(COMPOUND, PARTS, tuple(asked), tuple(gone))


@dataclass(frozen=True)
class Seen:
    """Per picture: what must stay is seen, what must go is; per picture and object not named: it is seen."""

    other: np.ndarray
    concept: np.ndarray
    unnamed: np.ndarray


class Bench:
    """The miniature and one sampler whose weights edits are tried in."""

    def __init__(self, first_seed: int = FIRST_SEED) -> None:
        from compiler.base import open_base
        from compiler.generate import Sampler
        from editspec.model import PathBase
        from excise.embedded import register
        from excise.miniature.judging import oracles

        register()
        self.first_seed = first_seed
        self.base = open_base(PathBase(path="miniature"), ROOT)
        self.sampler = Sampler(self.base)
        self.oracles = oracles()

    def deltas(self, edit: Mapping[str, Any], preserve: Sequence[str], seed: int) -> dict[str, Any]:
        """The changes of one edit, compiled with an empty cache."""
        import torch

        from compiler.cache import StageCache
        from compiler.passes import PassContext, discover
        from compiler.progress import Silent
        from compiler.seeds import reproducible
        from editspec import parse_spec

        document = {
            "editspec": 1,
            "name": "composed",
            "base": {"path": "miniature"},
            "seed": seed,
            "edits": [{"edit": "erase", **edit}],
            "preserve": {"concepts": list(preserve)},
        }
        spec = parse_spec(json.dumps(document))
        (engine,) = (one for one in discover() if one.accepts(spec.edits[0]))
        with tempfile.TemporaryDirectory(prefix="composed-") as cache, reproducible():
            context = PassContext(
                spec, self.base, {}, seed, torch.device("cpu"), StageCache(Path(cache)), Silent()
            )
            return dict(engine.run(spec.edits, context).deltas)

    def measure(self, case: Case, edits: Mapping[str, Mapping[str, Any]], seeds: int) -> dict[str, Any]:
        """Base beside each edit, on the same prompts and seeds; pooled over builds of several seeds."""
        with self.edited({}):
            before = self._seen(case)
        found: dict[str, Any] = {"base": self._rates(before)}
        if case.halves:
            found["base"]["unnamed"] = rate(before.unnamed)
        shown = most(before.other, case.pictures)
        for name, edit in edits.items():
            after, each = list[Seen](), []
            for seed in range(seeds):
                changes = self.deltas({"concept": case.concept, **edit}, case.preserve, seed)
                with self.edited(changes):
                    after.append(self._seen(case))
                stays = most(after[-1].other, case.pictures)[shown]
                each.append([float(stays.mean()), float(after[-1].concept.mean())])
                print(f"{case.concept} {name} {seed}: kept, gone {each[-1]}", file=sys.stderr, flush=True)
            other = np.concatenate([one.other for one in after])
            concept = np.concatenate([one.concept for one in after])
            found[name] = {
                **self._rates(Seen(other, concept, before.unnamed)),
                "kept": rate(most(other, case.pictures)[np.tile(shown, seeds)]),
                "loss": self._loss(np.tile(before.other, seeds), other),
                "builds": each,
            }
        return found

    @contextmanager
    def edited(self, changes: Mapping[str, Any]) -> Iterator[None]:
        """Inside, the sampler draws with these changes."""
        from compiler.judging import changed

        with changed(self.sampler.pipeline.unet, changes):
            yield

    def _seen(self, case: Case) -> Seen:
        """What both oracles see of what must stay, of what must go, and of what nobody asked for."""
        kept = self._verdicts(case, case.asked)
        same = [prompt for prompt, *_ in case.asked] == [prompt for prompt, *_ in case.gone]
        gone = kept if same else self._verdicts(case, case.gone)
        other, concept = self._each(kept, case.asked), self._each(gone, case.gone)
        unnamed = [
            kept.shows("object", name)[[name not in prompt.split() for prompt, *_ in case.asked]]
            for name in OTHERS
        ]
        return Seen(other, concept, np.concatenate(unnamed))

    def _verdicts(self, case: Case, looked: Sequence[tuple[str, str, str]]) -> Looks:
        from compiler.generate import Draw, Sampling
        from excise.miniature.judging import Verdicts

        draws: list[Draw] = [Draw(prompt, self.first_seed + k) for k, (prompt, _, _) in enumerate(looked)]
        images = self.sampler.images(draws, Sampling(5.0, 15))
        views = [images, *(halves(images) if case.halves else ())]
        return Looks([Verdicts(view, self.oracles) for view in views])

    @staticmethod
    def _each(looks: Looks, looked: Sequence[tuple[str, str, str]]) -> np.ndarray:
        flags = np.zeros(len(looked), np.bool_)
        for group, name in dict.fromkeys((group, name) for _, group, name in looked):
            here = np.array([(g, n) == (group, name) for _, g, n in looked])
            flags[here] = looks.shows(group, name)[here]
        return flags

    @staticmethod
    def _rates(seen: Seen) -> dict[str, list[float]]:
        return {"shows_other": rate(seen.other), "shows_concept": rate(seen.concept)}

    @staticmethod
    def _loss(before: np.ndarray, after: np.ndarray) -> list[float]:
        from compiler.gates.statistics import paired_loss

        lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
        bounds = paired_loss(lost, gained, len(before))
        return [round(float(value), 4) for value in (bounds.estimate, bounds.lower, bounds.upper)]


def most(flags: np.ndarray, pictures: int) -> np.ndarray:
    """Per prompt: whether more than half of its pictures do."""
    return np.asarray(flags.reshape(-1, pictures).mean(1) > 0.5)


def rate(flags: np.ndarray) -> list[float]:
    """[share, low, high, n] with Wilson's interval; [0, 0, 1, 0] of nothing."""
    from compiler.gates.statistics import wilson

    if not len(flags):
        return [0.0, 0.0, 1.0, 0]
    bounds = wilson(int(flags.sum()), len(flags))
    return [*(round(float(value), 4) for value in (bounds.estimate, bounds.lower, bounds.upper)), len(flags)]


def mean(concepts: Iterable[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """[mean, low, high] over all builds of an edit; 95 % bootstrap."""
    from distil_bench import bootstrap

    builds = [build for concept in concepts for build in concept[name]["builds"]]
    columns = {"kept": [kept for kept, _ in builds], "shows_concept": [gone for _, gone in builds]}
    return {key: [sum(column) / len(column), *bootstrap(column)] for key, column in columns.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concepts", type=int, default=5, help="how many objects are erased, one by one")
    parser.add_argument("--trials", type=int, default=60, help="pictures of each case")
    parser.add_argument("--seeds", type=int, default=3, help="builds of each edit")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of judged pictures")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--cases", nargs="+", choices=["in_prompt", "compound"], default=["in_prompt", "compound"]
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    bench = Bench(arguments.first_seed)
    edits = {name: METHODS[name] for name in arguments.only}
    found: dict[str, Any] = {}
    if "in_prompt" in arguments.cases:
        found["in_prompt"] = {
            concept: bench.measure(in_prompt_case(concept, arguments.trials), edits, arguments.seeds)
            for concept in CONCEPTS[: arguments.concepts]
        }
        found["in_prompt_mean"] = {name: mean(found["in_prompt"].values(), name) for name in edits}
    if "compound" in arguments.cases:
        found["compound"] = bench.measure(compound_case(arguments.trials), edits, arguments.seeds)
    print(json.dumps(found) if arguments.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
