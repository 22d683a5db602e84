"""The runtime originals beside folded directions: a negative prompt, and the published h-space vector."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from latent_bench import Bench, Way, latent_shape_of

if TYPE_CHECKING:
    from pathlib import Path

PUBLISHED_PICTURES = 1000
PUBLISHED_EVALS = 62_000 + 20_000 + 2 * 20_000
"""What the authors spend on one direction: pictures, forwards, backwards at 2 (METHODS: issue 4)."""
FORMAT = 1  # raise it when the same arguments may give other vectors


def originals(bench: Bench) -> list[Way]:
    """The negative prompt, and the hooks with the published vector in the text half, as published."""
    from compiler.baselines.hspace import MidBlockVector
    from compiler.baselines.negative_prompt import NegativePrompt

    found = [Way("negative prompt", NegativePrompt(negative(bench)))]
    if bench.arguments.published_steps:
        vectors, _ = published(bench)
        found += [Way(f"hook {name}", MidBlockVector(vector)) for name, vector in sorted(vectors.items())]
    return found


def negative(bench: Bench) -> str:
    """The negative prompt that the direction learns from."""
    negative_prompt = bench.spec("all").edits[0].directions[0].negative_prompt  # type: ignore[union-attr]
    assert negative_prompt is not None
    return negative_prompt


def published(bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """The published vectors away from the mark, `channel` and `spatial`, and facts about them.

    Learned on what the folded direction is learned on: pictures of the same prompts, drawn with the negative
    prompt (y+), whose noise must be predicted under the prompts alone (y-). Kept in the stage cache.
    """
    from safetensors.torch import load_file

    from compiler.versions import library_versions

    cache, arguments = bench.context.cache, bench.arguments
    key = cache.key(
        {
            "stage": "benchmarks/latent published",
            "format": FORMAT,
            "spec": bench.spec("all").document["edits"][0]["prompts"],
            "negative": negative(bench),
            "pictures": arguments.published_pictures,
            "steps": [arguments.published_steps, arguments.sampling_steps],
            "base": bench.context.checkpoint.digest,
            "libraries": library_versions(),
        }
    )
    folder = cache.get(key) or cache.put(key, lambda folder: _learn(bench, folder))
    return load_file(folder / "vectors.safetensors"), json.loads((folder / "facts.json").read_text("utf-8"))


def _learn(bench: Bench, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from compiler.baselines.published import PublishedSettings, learn_published
    from compiler.teacher import Teacher

    teacher, arguments = Teacher(bench.context), bench.arguments
    edit: Any = bench.spec("all").edits[0]
    texts = [edit.prompts[number % len(edit.prompts)] for number in range(arguments.published_pictures)]
    latents, evals = _pictures(bench, teacher, texts)
    rows = teacher.encode(edit.prompts).rows(torch.arange(len(texts)) % len(edit.prompts))
    vectors, facts = {}, {}
    for name in ("channel", "spatial"):
        settings = PublishedSettings(steps=arguments.published_steps, spatial=name == "spatial")
        done = learn_published(teacher.unet, teacher.scheduler, latents, rows, settings, 7)
        vectors[name] = done.vector
        tenth = max(1, len(done.curve) // 10)
        first, last = (sum(part) / tenth for part in (done.curve[:tenth], done.curve[-tenth:]))
        facts[name] = {"evals": evals + done.evals, "loss first tenth": first, "loss last tenth": last}
    save_file(vectors, folder / "vectors.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")


def _pictures(bench: Bench, teacher: Any, texts: list[str]) -> tuple[Any, int]:
    """Clean latents of pictures of the prompts under the negative prompt, and the evals they took."""
    import torch

    from compiler.baselines import sample_with
    from compiler.baselines.negative_prompt import NegativePrompt
    from compiler.seeds import gaussian, generator

    steps, latents = bench.arguments.sampling_steps, []
    for start in range(0, len(texts), 32):
        part = texts[start : start + 32]
        names = [("published", start + number) for number in range(len(part))]
        sampled = sample_with(
            NegativePrompt(negative(bench)),
            teacher.unet,
            teacher.scheduler,
            teacher.encode,
            torch.stack([gaussian(latent_shape_of(teacher), 7, *name) for name in names]),
            teacher.unconditional,
            teacher.encode(part),
            steps=steps,
            guidance_scale=7.5,
            generators=[generator(7, *name) for name in names],
        )
        latents.append(sampled.latents)
    return torch.cat(latents), 2 * len(
        texts
    ) * steps  # the empty prompt is not needed beside the negative one
