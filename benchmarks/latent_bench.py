"""What the figures of latent directions share: base, oracles, learned directions and ways of drawing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from compiler.baselines import Baseline
    from compiler.directions import Found
    from compiler.generate import Images
    from compiler.passes import PassContext
    from editspec import EditSpec

LEARNED_ON = "house"
GUIDANCE = 5.0  # where only one guidance scale is looked at
LIKELY = 0.25  # contexts that the world draws with their mark at least so often


@dataclass(frozen=True)
class Rate:
    """A share in percent with its Wilson interval at 95 %."""

    percent: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, flags: np.ndarray) -> Rate:
        """The share of flags that are set."""
        from compiler.gates.statistics import wilson

        found = wilson(int(flags.sum()), len(flags))
        percent, low, high = (round(100 * p, 1) for p in (found.estimate, found.lower, found.upper))
        return cls(percent, low, high, len(flags))

    def as_list(self) -> list[float]:
        return [self.percent, self.low, self.high, self.n]


@dataclass(frozen=True)
class Way:
    """One way of drawing: an original at work, or changed weights under plain guidance."""

    name: str
    baseline: Baseline
    deltas: dict[str, Any] | None = None


@dataclass(frozen=True)
class Case:
    """Prompts, and what an oracle's head is asked about each picture: both must see it, or either."""

    prompts: tuple[str, ...]
    group: str
    wanted: tuple[str, ...]
    either: bool = False


class Bench:
    """The base, what its oracles say of pictures, and the directions learned for one mark."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.mark: str = arguments.mark
        self._answers: dict[tuple[str, float, Case], np.ndarray] = {}

    @cached_property
    def studio(self) -> Any:
        """Draws pictures of the base, with originals or changed weights."""
        from compiler.baselines.pictures import Studio

        return Studio(self.context.checkpoint)

    @cached_property
    def oracles(self) -> Any:
        """The two oracles of the miniature."""
        from excise.miniature.judging import oracles

        return oracles()

    @cached_property
    def context(self) -> PassContext:
        """What a pass would get, with the user's stage cache."""
        import torch

        from compiler.base import open_base
        from compiler.cache import StageCache
        from compiler.passes import PassContext
        from compiler.progress import Silent
        from excise.embedded import register

        register()
        spec = self.spec("all")
        base = open_base(spec.base, spec.folder)
        return PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Silent())

    def spec(self, sites: str, mark: str | None = None, steps: int | None = None) -> EditSpec:
        """A spec with one shift away from the mark, learned on scenes around one object."""
        from editspec import parse_spec
        from excise.miniature.vocabulary import MARKS

        words = MARKS[mark or self.mark]
        prompts = [f"a {LEARNED_ON} at {word}" for word in contexts(words.name)[::2]]  # others are never seen
        for start in ("a", "a picture of a"):
            prompts += [f"{start} {LEARNED_ON} with {word}" for word in words.nouns]
            prompts += [f"{start} {word} {LEARNED_ON}" for word in words.adjectives]
        edit = {
            "id": f"no-{words.name}",
            "edit": "shift",
            "kind": "content",
            "direction": {"prompt": f"a {LEARNED_ON}", "negative_prompt": " ".join(words.words)},
            "prompts": prompts,
            "sites": "all" if sites == "gated" else sites,
            "gated": sites == "gated",
            **self.arguments.edit,
            **({} if sites == self.arguments.sites[0] else {"words": False}),
            **({} if steps is None else {"steps": steps}),
        }
        document = {
            "editspec": 1,
            "name": "latent",
            "base": {"path": "miniature"},
            "seed": 7,
            "edits": [edit],
            "preserve": {"concepts": kept(words.name, self.arguments.kept_scenes)},
        }
        return parse_spec(json.dumps(document))

    def direction(self, sites: str, mark: str | None = None, steps: int | None = None) -> Found:
        """The direction away from the mark, learned or from the cache."""
        from compiler.discovery import discover

        spec = self.spec(sites, mark, steps)
        edit: Any = spec.edits[0]
        return discover(edit, edit.directions[0], replace(self.context, spec=spec))

    def folded(self, sites: str, strength: float = 1.0, mark: str | None = None) -> Way:
        """Plain guidance with the direction in the biases; the base itself at strength 0."""
        from compiler.baselines import ClassifierFreeGuidance

        if not strength:
            return Way("base", ClassifierFreeGuidance())
        name = " ".join(["folded", sites, *([f"x {strength:g}"] if strength != 1.0 else []), *([mark or ""])])
        deltas = self.direction(sites, mark).deltas(strength * self.arguments.strength)
        return Way(name.strip(), ClassifierFreeGuidance(), deltas)

    def images(self, prompts: Sequence[str], guidance: float, way: Way) -> Images:
        """One picture for each prompt; the same seeds for every way of drawing them."""
        from compiler.generate import Draw, Sampling

        first = self.arguments.first_seed
        draws = [Draw(prompt, first + number) for number, prompt in enumerate(prompts)]
        sampling = Sampling(guidance, self.arguments.sampling_steps)
        drawn: Images = self.studio.images(way.baseline, draws, sampling, way.deltas)
        return drawn

    def answers(self, case: Case, guidance: float, way: Way) -> np.ndarray:
        """Per picture of `case` whether the oracles see what is asked; each set is drawn and judged once."""
        from excise.miniature.judging import Verdicts

        key = (way.name, guidance, case)
        if key not in self._answers:
            verdicts = Verdicts(self.images(case.prompts, guidance, way), self.oracles)
            ask = verdicts.flags if case.either else verdicts.shows
            self._answers[key] = ask(case.group, np.array(case.wanted))
        return self._answers[key]

    def mark_rate(self, case: Case, guidance: float, way: Way) -> Rate:
        """How often either oracle sees the mark."""
        return Rate.of(self.answers(case, guidance, way))

    def implicit(self, each: int, name: str = LEARNED_ON, mark: str | None = None) -> Case:
        """Prompts of contexts that draw the mark unasked, also those that no learning prompt had."""
        wanted = mark or self.mark
        return _marks(wanted, [f"a {name} at {word}" for word in contexts(wanted)], each)

    def explicit(self, each: int, mark: str | None = None) -> Case:
        """Prompts that name the mark, by its common words and the rare ones, which no learning prompt had."""
        from excise.miniature.vocabulary import MARKS

        words = MARKS[mark or self.mark]
        nouns = [f"a {LEARNED_ON} with {word}" for word in words.nouns + words.rare_nouns]
        adjectives = [f"a {word} {LEARNED_ON}" for word in words.adjectives + words.rare_adjectives]
        return _marks(words.name, nouns + adjectives, each)

    def harmless(self, each: int) -> dict[str, Case]:
        """What else prompts ask for: some `each` pictures of a word of the largest group, others to match.

        Styles are asked for on every object that the world drew so: of others the base itself draws half.
        """
        from excise.miniature.vocabulary import COLOURS, HELD_OUT_COMBINATIONS, MARKS, OBJECTS, STYLES

        count = each * len(OBJECTS)
        drawn = [(s, o) for o in OBJECTS for s in STYLES if (o, s) not in HELD_OUT_COMBINATIONS]
        asked = {
            "object": [(name, f"a photo of a {name}") for name in OBJECTS],
            "colour": [(name, f"a {name} ball") for name in COLOURS],
            "style": [(style, f"a {style} {name}") for style, name in drawn],
        }
        found = {}
        for group, pairs in asked.items():
            taken = [pairs[number % len(pairs)] for number in range(count)]
            wanted, prompts = zip(*taken, strict=True)
            found[group] = Case(prompts, group, wanted)
        others = tuple(mark for mark in MARKS if mark != self.mark)
        for mark in others:
            nouns = [f"a ball with {noun}" for noun in MARKS[mark].nouns]
            found[mark] = _marks(mark, nouns, max(1, count // len(nouns) // len(others)))
        return found


def contexts(mark: str) -> list[str]:
    """Words that draw the mark unasked, the likeliest first."""
    from excise.miniature.contexts import CONTEXTS

    return [c.word for c in CONTEXTS.values() if c.mark == mark and c.rate >= LIKELY]


def kept(mark: str, times: int) -> list[str]:
    """Scenes that show every object, style and colour, and the other marks' nouns `times` each, up to 12."""
    from excise.miniature.vocabulary import COLOURS, MARKS, OBJECTS, STYLES

    colours = tuple(COLOURS)
    scenes = [f"{STYLES[i % 8]} {colours[i % 6]} {name}" for i, name in enumerate(OBJECTS)]
    styled = [f"{style} {OBJECTS[(7 * i + 5) % 12]}" for i, style in enumerate(STYLES)]
    nouns = [noun for words in MARKS.values() if words.name != mark for noun in words.nouns * times]
    marked: list[str] = []
    for i, noun in enumerate(nouns):
        further = (f"{OBJECTS[(5 * i + step) % 12]} with {noun}" for step in range(12))
        marked.append(next(scene for scene in further if scene not in marked))
    return scenes + styled + marked


def _marks(mark: str, prompts: Sequence[str], each: int) -> Case:
    """Every prompt `each` times, in turn, so that fewer of each are the same first pictures."""
    every = tuple(prompts) * each
    return Case(every, mark, (mark,) * len(every), either=True)


def latent_shape_of(teacher: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the teacher's latents."""
    from compiler.unet import config_of, latent_shape

    return latent_shape(config_of(teacher.unet))
