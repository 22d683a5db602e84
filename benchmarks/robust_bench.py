"""How often a learned token brings an erased concept back: plain ESD beside robust ESD, and what it costs."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from erasure_bench import GUIDANCE, STEPS, Erasures, names_of, rate
from strength_bench import CASES, say

ATTACK_STEPS = 150
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
ATTACKED: dict[str, dict[str, Any]] = {
    "flame": {"kind": "content", "aliases": ["fire", "burning"]},
    **{name: {key: case[key] for key in ("kind", "aliases")} for name, case in CASES.items()},
}
TWINNED = "flame"  # what the twin never saw


def robust(bench: Erasures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Learned tokens against plain and robust ESD of each concept and seed; against base and twin once."""
    concepts = [arguments.only] if arguments.only else [*ATTACKED][: arguments.concepts]
    seeds = range(arguments.first_build, arguments.first_build + arguments.seeds)
    asked = [(concept, seed) for concept in concepts for seed in seeds]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as workers:
        build = partial(one_build, bench.trials, bench.first_seed)
        builds = dict(zip(asked, workers.map(build, *zip(*asked, strict=True)), strict=True))
    return {
        "all": pooled(builds.values()),
        "concepts": {name: pooled([builds[name, seed] for seed in seeds]) for name in concepts},
        "builds": {f"{name} {seed}": rates(found) for (name, seed), found in builds.items()},
    }


@cache
def bench_of(trials: int, first_seed: int) -> Erasures:
    """The bench of one process."""
    return Erasures(trials, first_seed)


def one_build(trials: int, first_seed: int, concept: str, seed: int) -> dict[str, dict[str, list[bool]]]:
    """By way and figure, what was seen in each picture."""
    bench = bench_of(trials, first_seed)
    edit = {**ESD, **ATTACKED[concept], "concept": concept}
    kind = edit["kind"]
    others = [name for name in dict.fromkeys([*names_of(kind), *names_of("object")]) if name != concept]
    kept = [bench.named([name], kind if name in names_of(kind) else "object", None, 3) for name in others]
    beside = [prompt for prompts, _ in kept for prompt in prompts], [n for _, names in kept for n in names]
    unedited = ("base", "twin")[: 0 if seed else 1 + (concept == TWINNED)]
    ways: dict[str, Mapping[str, Any]] = {name: {} for name in unedited}
    with tempfile.TemporaryDirectory(prefix="erasure-") as folder:
        for name, hard in (("plain", False), ("robust", True)):
            more = {"preserve": {"concepts": others}}
            ways[name] = bench.built({**edit, "robust": hard}, seed, Path(folder), **more)[0]
    found: dict[str, dict[str, list[bool]]] = {}
    for name, deltas in ways.items():
        row = {"attacked": learned_token(bench, concept, deltas, seed, trials, twin=name == "twin")}
        if name != "twin":  # which is a checkpoint of its own
            asked = bench.named([concept], kind, None, 20)
            row["explicit"] = list(bench.recognised(*asked, deltas, "any"))
            row["kept"] = list(bench.recognised(*beside, deltas, "all"))
        say(f"robust {concept} {seed} {name}: { {key: rate(flags) for key, flags in row.items()} }")
        found[name] = row
    return found


def pooled(builds: Iterable[Mapping[str, Mapping[str, Sequence[bool]]]]) -> dict[str, Any]:
    """All builds together: rates, and the points of what is kept that robustness costs, paired."""
    every: dict[str, dict[str, list[bool]]] = {}
    for build in builds:
        for way, row in build.items():
            for name, flags in row.items():
                every.setdefault(way, {}).setdefault(name, []).extend(map(bool, flags))
    return {**rates(every), "lost_to_robustness": lost(every)}


def rates(ways: Mapping[str, Mapping[str, Sequence[bool]]]) -> dict[str, dict[str, list[float]]]:
    """Each figure as [share, low, high, n]."""
    return {way: {name: rate(flags) for name, flags in row.items()} for way, row in ways.items()}


def lost(ways: Mapping[str, Mapping[str, Sequence[bool]]]) -> list[float]:
    """What robust ESD keeps less often than plain ESD in the same pictures: [share, low, high]."""
    from compiler.gates.statistics import paired_loss

    pairs = list(zip(ways["plain"]["kept"], ways["robust"]["kept"], strict=True))
    gone, gained = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    loss = paired_loss(gone, gained, len(pairs))
    return [loss.estimate, loss.lower, loss.upper]


def learned_token(
    bench: Erasures, concept: str, deltas: Mapping[str, Any], seed: int, trials: int, twin: bool
) -> list[bool]:
    """Pictures with the concept after textual inversion; x_t and wanted predictions are the base's."""
    import numpy as np
    import torch

    from compiler.adversary import Victim, attack
    from compiler.bank_request import BankRequest
    from compiler.cache import StageCache
    from compiler.checkpoint import Checkpoint
    from compiler.passes import PassContext
    from compiler.progress import Silent
    from compiler.sampling import sample
    from compiler.seeds import gaussian, generator
    from compiler.teacher import Teacher
    from compiler.unet import add_deltas, build_unet, config_of, latent_shape
    from compiler.vae import Autoencoder
    from editspec.templates import TEMPLATES, fill
    from excise.miniature.assets import export

    spec = bench.spec({"edit": "erase", **ATTACKED[concept], "concept": concept}, seed)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="erasure-") as folder:
        attacked = Checkpoint.open(export(Path(folder) / "twin", twin=True)) if twin else bench.base
        cache = StageCache(Path(folder) / "cache")
        context = PassContext(spec, bench.base, {}, seed, device, cache, Silent())
        own = PassContext(spec, attacked, {}, seed, device, cache, Silent())
        teacher = Teacher(context)
        prompts = tuple(fill(template, concept) for template in TEMPLATES[ATTACKED[concept]["kind"]][1:])
        bank = teacher.bank(
            BankRequest(prompts, (8,) * len(prompts), seed=50_000 + seed, steps=20, strata=10)
        )
        student = build_unet(attacked)
        add_deltas(student, deltas)
        rows = torch.arange(len(bank))
        victim = Victim(concept, prompts, Teacher(own).encode(prompts), bank, rows, bank.column("prompt"))
        done = attack(
            student,
            own.text(),
            victim,
            "token",
            batch=12,
            seed=60_000 + seed,
            names=("judge",),
            steps=ATTACK_STEPS,
        )
        shape = latent_shape(config_of(student))
        images = []
        for start in range(0, trials, 32):
            numbers = range(start, min(start + 32, trials))
            drawn = sample(
                student,
                teacher.scheduler,
                torch.stack([gaussian(shape, bench.first_seed, "attacked", number) for number in numbers]),
                Teacher(own).unconditional,
                done.rows.rows([number % len(prompts) for number in numbers]),
                steps=STEPS,
                guidance_scale=GUIDANCE,
                generators=[generator(bench.first_seed, number) for number in numbers],
            )
            images += [np.asarray(picture) for picture in Autoencoder(attacked, device).decode(drawn.latents)]
    return list(bench.seen(np.stack(images), np.array([concept] * trials), "any"))
