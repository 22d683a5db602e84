"""Trains the two oracles: independent classifiers that judge pictures and never saw one from any U-Net.

They learn from drawings, from the autoencoder's reconstructions of drawings (with a little latent noise,
as sampling leaves), and from garbage that must be called "none". Their folders are ordinary transformers
image classifiers whose labels carry their group ("style:dotted"): no special case in the product.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from torch.nn import functional

from excise.miniature.architecture import IMAGE_SIZE
from excise.miniature.labels import LABEL_GROUPS, LABELS, SKIP
from excise.miniature.training.autoencoder import to_model_range
from excise.miniature.training.oracle_pictures import oracle_pictures
from excise.miniature.training.state import descend, learning_rate, load_state, save_state
from excise.miniature.vocabulary import MARKS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import ResNetForImageClassification


@dataclass(frozen=True)
class Recipe:
    """One oracle: its widths, its own world seed, and how hard its pictures are disturbed."""

    name: str
    embedding: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    world_seed: int
    shift: int
    noise: float
    latent_noise: float
    mottle: float
    blur: float
    steps: int


RECIPES = {
    "oracle-a": Recipe(
        "oracle-a",
        32,
        (32, 64, 96, 128),
        (1, 1, 1, 1),
        31,
        shift=3,
        noise=0.05,
        latent_noise=0.12,
        mottle=0.20,
        blur=0.5,
        steps=6000,
    ),
    "oracle-b": Recipe(
        "oracle-b",
        24,
        (48, 72, 112),
        (1, 2, 1),
        32,
        shift=5,
        noise=0.10,
        latent_noise=0.20,
        mottle=0.30,
        blur=0.7,
        steps=6000,
    ),
}
WARM = ("red", "orange", "yellow")
"""Colours of a flame: objects of these, dotted or unevenly shaded, are what an oracle takes for one."""
MARK_WEIGHT = 3.0
ORACLE_SIZE = 64
"""Pictures are doubled by nearest neighbour first: the stem of a residual network halves its input twice."""


def build_oracle(recipe: Recipe) -> ResNetForImageClassification:
    """A small residual network with one logit per label of every group."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=recipe.embedding,
            hidden_sizes=list(recipe.widths),
            depths=list(recipe.depths),
            layer_type="basic",
            id2label=dict(enumerate(LABELS)),
            label2id={n: i for i, n in enumerate(LABELS)},
        )
    )


def grouped_loss(logits: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """Sum over groups of the cross-entropy within each; truths (n, groups), SKIP ignored.

    Marks count more: they are rare and small, and a missed one is what an oracle must not do.
    """
    parts = torch.split(logits, [len(names) for names in LABEL_GROUPS.values()], dim=1)
    losses = [functional.cross_entropy(p, truths[:, k], ignore_index=SKIP) for k, p in enumerate(parts)]
    weighted = [
        loss * (MARK_WEIGHT if group in MARKS else 1.0)
        for group, loss in zip(LABEL_GROUPS, losses, strict=True)
    ]
    return torch.stack([loss for loss in weighted if not loss.isnan()]).sum()


def disturb(pixels: torch.Tensor, recipe: Recipe, rng: np.random.Generator) -> torch.Tensor:
    """Shift, brightness, uneven shading, softness and noise, then doubled: (n, 3, 32, 32) to (n, 3, 64, 64).

    Shading and softness are what sampling adds to a drawing: colours that wander over a plain area, edges
    that are not quite sharp. An oracle that has met neither calls a mottled orange house a fire.
    """
    count = len(pixels)
    dx, dy = (int(v) for v in rng.integers(-recipe.shift, recipe.shift + 1, size=2))
    padded = functional.pad(pixels, (recipe.shift,) * 4, mode="replicate")
    start_y, start_x = recipe.shift + dy, recipe.shift + dx
    moved = padded[:, :, start_y : start_y + IMAGE_SIZE, start_x : start_x + IMAGE_SIZE]
    gain = torch.from_numpy(rng.uniform(0.92, 1.08, (count, 1, 1, 1))).float()
    coarse = rng.standard_normal((count, 3, 8, 8), dtype=np.float32) * rng.uniform(
        0, recipe.mottle, (count, 1, 1, 1)
    ).astype(np.float32)
    mottle = functional.interpolate(torch.from_numpy(coarse), size=IMAGE_SIZE, mode="bilinear")
    soft = torch.from_numpy(rng.uniform(0, recipe.blur, (count, 1, 1, 1))).float()
    blurred = functional.avg_pool2d(functional.pad(moved, (1,) * 4, mode="replicate"), 3, stride=1)
    noise = torch.from_numpy(rng.standard_normal(moved.shape, dtype=np.float32)) * float(
        rng.uniform(0, recipe.noise)
    )
    softened = torch.lerp(moved, blurred, soft)
    return functional.interpolate(softened * gain + mottle + noise, size=ORACLE_SIZE, mode="nearest")


def train_oracle(
    recipe: Recipe,
    vae: AutoencoderKL,
    work: Path,
    count: int = 48_000,
    batch: int = 64,
    peak: float = 2e-3,
) -> ResNetForImageClassification:
    """Train one oracle (continuing a killed run) and save it as a transformers folder in `work`."""
    torch.manual_seed(recipe.world_seed)
    pixels, truths = oracle_pictures(recipe, count, vae, work / f"{recipe.name}.npz")
    model = build_oracle(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.02, fused=True)
    state = work / f"{recipe.name}.state.safetensors"
    first = load_state(state, {"model": model}, optimizer)
    started = time.monotonic()
    columns = [k for k, group in enumerate(LABEL_GROUPS) if group in MARKS]
    shown = (truths[:, columns] == 0).any(axis=1)
    colour = truths[:, list(LABEL_GROUPS).index("colour")]
    warm = np.isin(colour, [LABEL_GROUPS["colour"].index(name) for name in WARM])
    marked, warm_alone = np.flatnonzero(shown), np.flatnonzero(warm & ~shown)
    for step in range(first, recipe.steps):
        rng = np.random.default_rng([recipe.world_seed, step])
        rows = np.concatenate(  # marks are rare, and so is what looks like one
            [
                rng.integers(count, size=batch // 2),
                marked[rng.integers(len(marked), size=3 * batch // 8)],
                warm_alone[rng.integers(len(warm_alone), size=batch // 8)],
            ]
        )
        loss = grouped_loss(
            model(disturb(to_model_range(pixels[rows]), recipe, rng)).logits, torch.from_numpy(truths[rows])
        )
        descend(loss, optimizer, learning_rate(step, recipe.steps, peak))
        if step % 250 == 0 or step == recipe.steps - 1:
            click.echo(f"{recipe.name} step {step} loss {loss.item():.3f} {time.monotonic() - started:.0f}s")
            save_state(state, {"model": model}, optimizer, step + 1)
    model.eval().half().save_pretrained(work / recipe.name)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "resample": 0,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"height": ORACLE_SIZE, "width": ORACLE_SIZE},
    }
    (work / recipe.name / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    return model.float()
