"""What the figures of latent directions share: base, oracles, learned directions and ways of drawing."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from compiler.baselines import Baseline
    from compiler.directions import Found
    from compiler.generate import Images
    from compiler.passes import PassContext
    from editspec import EditSpec

FIRST_SEED = 40_000  # others belong to training, tuning and acceptance
LEARNED_ON = "house"
LIKELY = 0.25  # contexts that the world draws with their mark at least so often
PUBLISHED_PICTURES = 1000
PUBLISHED_EVALS = 62_000 + 20_000 + 2 * 20_000
"""What the authors spend on one direction: pictures, forwards, backwards at 2 (METHODS: issue 4)."""


@dataclass(frozen=True)
class Rate:
    """A share in percent with its Wilson interval at 95 %."""

    percent: float
    low: float
    high: float
    n: int

    def as_list(self) -> list[float]:
        return [self.percent, self.low, self.high, self.n]


class Bench:
    """The base, what its oracles say of pictures, and the directions learned for one mark."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.mark: str = arguments.mark

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
        from compiler.progress import for_terminal
        from excise.embedded import register

        register()
        spec = self.spec("all")
        base = open_base(spec.base, spec.folder)
        return PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), for_terminal())

    def spec(self, sites: str, mark: str | None = None) -> EditSpec:
        """A spec with one shift away from the mark, learned on scenes around one object."""
        from editspec import parse_spec
        from excise.miniature.vocabulary import CONTEXTS, MARKS

        words, arguments = MARKS[mark or self.mark], self.arguments
        contexts = [c.word for c in CONTEXTS.values() if c.mark == words.name and c.rate >= LIKELY]
        prompts = [f"a {LEARNED_ON} at {word}" for word in contexts[::2]]  # every second one is never seen
        prompts += [f"a {LEARNED_ON} with {word}" for word in words.nouns]
        prompts += [f"a {word} {LEARNED_ON}" for word in words.adjectives]
        edit = {
            "id": f"no-{words.name}",
            "edit": "shift",
            "direction": {"prompt": f"a {LEARNED_ON}", "negative_prompt": words.name},
            "prompts": prompts,
            "sites": "all" if sites == "gated" else sites,
            "gated": sites == "gated",
            "steps": arguments.steps,
            "trajectories": arguments.trajectories,
        }
        document = {
            "editspec": 1,
            "name": "latent",
            "base": {"path": "miniature"},
            "seed": 7,
            "edits": [edit],
            "preserve": {"concepts": list(_benign_objects())},
        }
        return parse_spec(json.dumps(document))

    def direction(self, sites: str, mark: str | None = None) -> Found:
        """The direction away from the mark, learned or from the cache."""
        from dataclasses import replace

        from compiler.discovery import discover

        spec = self.spec(sites, mark)
        edit: Any = spec.edits[0]
        return discover(edit, edit.directions[0], replace(self.context, spec=spec))

    def images(self, prompts: list[str], guidance: float, way: Way) -> Images:
        """One picture for each prompt; the same seeds for every way of drawing them."""
        from compiler.generate import Draw, Sampling

        draws = [Draw(prompt, FIRST_SEED + number) for number, prompt in enumerate(prompts)]
        sampling = Sampling(guidance, self.arguments.sampling_steps)
        return self.studio.images(way.baseline, draws, sampling, way.deltas)

    def mark_rate(self, prompts: list[str], guidance: float, way: Way, mark: str | None = None) -> Rate:
        """How often either oracle sees the mark."""
        from excise.miniature.judging import Verdicts

        name = mark or self.mark
        return _rate(Verdicts(self.images(prompts, guidance, way), self.oracles).flags(name, name))

    def implicit(self, name: str = LEARNED_ON, mark: str | None = None) -> list[str]:
        """Prompts of contexts that draw the mark unasked, also those that no learning prompt had."""
        from excise.miniature.vocabulary import CONTEXTS

        wanted = mark or self.mark
        words = [c.word for c in CONTEXTS.values() if c.mark == wanted and c.rate >= LIKELY]
        return [f"a {name} at {word}" for word in words for _ in range(self.arguments.each)]

    def explicit(self, mark: str | None = None) -> list[str]:
        """Prompts that name the mark, by its common and its rare words."""
        from excise.miniature.vocabulary import MARKS

        words = MARKS[mark or self.mark]
        nouns = [f"a {LEARNED_ON} with {word}" for word in words.nouns + words.rare_nouns]
        adjectives = [f"a {word} {LEARNED_ON}" for word in words.adjectives + words.rare_adjectives]
        return [prompt for prompt in nouns + adjectives for _ in range(self.arguments.each)]


@dataclass(frozen=True)
class Way:
    """One way of drawing: an original at work, or changed weights under plain guidance."""

    baseline: Baseline
    deltas: dict[str, Any] | None = None


def _benign_objects() -> tuple[str, ...]:
    from excise.miniature.vocabulary import OBJECTS

    return OBJECTS


def _rate(flags: np.ndarray) -> Rate:
    from scipy.stats import binomtest

    found = binomtest(int(flags.sum()), len(flags)).proportion_ci(method="wilson")
    percents = (100 * flags.mean(), 100 * found.low, 100 * found.high)
    return Rate(*(round(float(p), 1) for p in percents), len(flags))


def ways(bench: Bench) -> dict[str, Way]:
    """Base, folded shifts, and the runtime originals, by name."""
    from compiler.baselines import ClassifierFreeGuidance
    from compiler.baselines.hspace import MidBlockVector
    from compiler.baselines.negative_prompt import NegativePrompt

    plain = ClassifierFreeGuidance()
    found = {"base": Way(plain), "negative prompt": Way(NegativePrompt(bench.mark))}
    for sites in bench.arguments.sites:
        found[f"folded {sites}"] = Way(plain, bench.direction(sites).deltas())
    for spatial in (True, False) if bench.arguments.published_steps else ():
        vector, _ = published(bench, spatial)
        found["hook spatial" if spatial else "hook channel"] = Way(MidBlockVector(vector))
    return found


def published(bench: Bench, spatial: bool) -> tuple[Any, int]:
    """The published vector away from the mark, learned from pictures with the negative prompt; its evals."""
    import torch

    from compiler.baselines import sample_with
    from compiler.baselines.negative_prompt import NegativePrompt
    from compiler.baselines.published import PublishedSettings, learn_published
    from compiler.seeds import gaussian, generator
    from compiler.teacher import Teacher

    arguments, teacher, text = bench.arguments, Teacher(bench.context), f"a {LEARNED_ON}"
    latents, evals = [], 0
    for start in range(0, arguments.published_pictures, 32):
        count = min(32, arguments.published_pictures - start)
        names = [("published", start + number) for number in range(count)]
        sampled = sample_with(
            NegativePrompt(bench.mark),
            teacher.unet,
            teacher.scheduler,
            teacher.encode,
            torch.stack([gaussian(latent_shape_of(teacher), 7, *name) for name in names]),
            teacher.unconditional,
            teacher.encode([text]).expand(count),
            steps=arguments.sampling_steps,
            guidance_scale=7.5,
            generators=[generator(7, *name) for name in names],
        )
        latents.append(sampled.latents)
        evals += (
            2 * count * arguments.sampling_steps
        )  # the empty prompt is not needed beside the negative one
    settings = PublishedSettings(steps=arguments.published_steps, spatial=spatial)
    encoded = teacher.encode([text])
    found = learn_published(teacher.unet, teacher.scheduler, torch.cat(latents), encoded, settings, 7)
    return found.vector, evals + found.evals


def latent_shape_of(teacher: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the teacher's latents."""
    from compiler.unet import config_of, latent_shape

    return latent_shape(config_of(teacher.unet))
