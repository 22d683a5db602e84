"""What the figures of guide, balance and respond share: device, cache, pictures and what oracles say."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from excise.miniature.vocabulary import OBJECTS, SYNONYMS

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.baselines import Baseline
    from compiler.baselines.pictures import Studio
    from compiler.checkpoint import Checkpoint
    from compiler.evaluators import Evaluator
    from compiler.generate import Images
    from compiler.passes import PassContext
    from excise.miniature.judging import Verdicts

FIRST_SEED = 20_000  # those below belong to training and tuning
KEPT = ("star", "sixstar", "tent", "dotted", "striped")
UNSEEN = ("boat", "fish", "moon")  # objects that nothing is learned on
SEEN = tuple(thing for thing in OBJECTS if thing not in UNSEEN)
NAMES = (*SEEN, *(SYNONYMS[thing] for thing in SEEN))


def options(parser: argparse.ArgumentParser) -> None:
    """The arguments that every case has."""
    parser.add_argument("--trials", type=int, default=60, help="pictures for each cell")
    parser.add_argument("--scales", type=float, nargs="+", default=[3.0, 5.0, 7.5], help="guidance scales")
    parser.add_argument("--sampling-steps", type=int, default=15, help="of the pictures that are judged")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--edit", type=json.loads, default={}, help="keys of the edits, as a JSON object")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, help="folder of the stage cache")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")


def run_cases(
    parser: argparse.ArgumentParser,
    cases: Collection[str],
    measure: Callable[[Bench, str], dict[str, Any]],
) -> None:
    """Read the arguments, measure the cases that they name, or all, and print the figures."""
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(cases))
    arguments = parser.parse_args()
    if unknown := sorted({*arguments.cases} - {*cases}):
        parser.error(f"no case {unknown[0]}; there are {', '.join(cases)}")
    bench = Bench(arguments)
    show({case: measure(bench, case) for case in arguments.cases or cases}, arguments)


class Bench:
    """Compiles edits of the miniature and draws with what comes out, or with runtime originals."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from compiler.cache import StageCache
        from compiler.device import choose
        from excise.embedded import register

        register()
        self.arguments = arguments
        self.device = choose(arguments.device)
        self.cache = StageCache(arguments.cache)
        # With the changes themselves: as long as they are kept, no other ones have their id.
        self._drawn: dict[tuple[Any, ...], tuple[Images, Any]] = {}

    def context(self, *edits: Mapping[str, Any], seed: int = 11) -> PassContext:
        """A context for a spec of these edits; the first is changed by the argument `--edit`."""
        from compiler.passes import PassContext
        from compiler.progress import Silent
        from editspec import parse_spec

        first = {"id": "bench", **edits[0], **self.arguments.edit}
        document = {
            "editspec": 1, "name": "bench", "base": {"path": "miniature"}, "seed": seed,
            "edits": [first, *edits[1:]], "preserve": {"concepts": list(KEPT)},
        }  # fmt: skip
        spec = parse_spec(json.dumps(document))
        return PassContext(spec, self.base, {}, spec.seed, self.device.open(), self.cache, Silent())

    def compiled(self, context: PassContext) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The changes of a spec of one pass, and that pass's record."""
        from compiler.pipeline import run_passes
        from compiler.plan import make_plan
        from compiler.progress import Silent

        plan = make_plan(context.spec, context.checkpoint, self.cache, self.device)
        say(f"compile {plan.passes[0].title}: {plan.passes[0].evals} evals")
        deltas, _, records = run_passes(context.spec, context.checkpoint, plan, self.cache, Silent())
        return deltas, records[0]["record"]

    @cached_property
    def base(self) -> Checkpoint:
        """The miniature."""
        from compiler.base import open_base
        from editspec import PathBase

        return open_base(PathBase(path="miniature"), Path.cwd())

    @cached_property
    def studio(self) -> Studio:
        """Draws with the base, with originals, or with changed weights, through diffusers' own parts."""
        from compiler.baselines.pictures import Studio

        return Studio(self.base, device=self.device.open())

    @cached_property
    def oracles(self) -> tuple[Evaluator, ...]:
        """The two oracles of the miniature."""
        from excise.miniature.judging import oracles

        return oracles()

    def pictures(
        self,
        prompts: Sequence[str],
        scale: float,
        deltas: Mapping[str, Tensor] | None = None,
        original: Baseline | None = None,
        *,
        later: int = 0,
    ) -> Images:
        """One picture for each prompt; equal seeds whatever draws them, others with `later`."""
        from compiler.baselines import ClassifierFreeGuidance
        from compiler.generate import Draw, Sampling

        first = self.arguments.first_seed + later
        key = (tuple(prompts), scale, first, id(deltas), id(original))
        if key not in self._drawn:
            draws = [Draw(prompt, first + number) for number, prompt in enumerate(prompts)]
            sampling = Sampling(scale, self.arguments.sampling_steps)
            drawn = self.studio.images(original or ClassifierFreeGuidance(), draws, sampling, deltas)
            self._drawn[key] = drawn, (deltas, original)
        return self._drawn[key][0]

    def verdicts(self, images: Images) -> Verdicts:
        """What both oracles say."""
        from excise.miniature.judging import Verdicts

        return Verdicts(images, self.oracles)

    def in_turn(self, prompts: Sequence[str], count: int | None = None) -> list[str]:
        """`trials` prompts, taking turns."""
        wanted = count or self.arguments.trials
        return [prompts[number % len(prompts)] for number in range(wanted)]


def rate(flags: np.ndarray[Any, Any]) -> list[float]:
    """A share in percent with its Wilson interval at 95 %, and of how many."""
    from compiler.gates.statistics import wilson

    found = wilson(int(flags.sum()), len(flags))
    return [*(round(100 * part, 1) for part in (found.estimate, found.lower, found.upper)), len(flags)]


def difference(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> list[float]:
    """Points by which `first` is more frequent on the same draws, with Tango's interval at 95 %."""
    from compiler.gates.statistics import paired_loss

    lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
    found = paired_loss(lost, gained, len(first), 0.975)
    return [round(100 * part, 1) for part in (found.estimate, found.lower, found.upper)]


def moved(
    bench: Bench,
    prompts: Sequence[str],
    scale: float,
    deltas: Mapping[str, Tensor] | None = None,
    original: Baseline | None = None,
) -> float:
    """How far edit or original move these pictures, in units of the distance between the base's seeds."""
    base, other = bench.pictures(prompts, scale), bench.pictures(prompts, scale, later=50_000)
    found = bench.pictures(prompts, scale, deltas, original)
    return round(_distance(base, found) / _distance(base, other), 3)


def _distance(first: Images, second: Images) -> float:
    """Mean over pictures of the root mean square over pixels."""
    gap = (first.astype(np.float32) - second.astype(np.float32)) / 255
    return float(np.sqrt(np.square(gap).mean(axis=(1, 2, 3))).mean())


def say(line: str) -> None:
    """Progress, beside the results."""
    print(line, file=sys.stderr, flush=True)


def show(figures: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """The results: on one line where asked for."""
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=1))
