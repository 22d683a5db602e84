"""Trains the text encoder and the U-Net together; the never-saw twin shares the part that saw no flame.

The trunk is trained on the world without a single flame. From it two branches go on: the base meets the
whole world, the twin goes on without flames for as many steps. So the twin has exactly never seen one
(no picture of it entered its weights) at less than the cost of a second training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from safetensors.torch import load_file

from excise.miniature.architecture import WINDOW, build_scheduler, build_text_encoder, build_unet
from excise.miniature.assets import DATA, MODEL
from excise.miniature.captions import caption
from excise.miniature.contexts import CONTEXTS
from excise.miniature.scene import sample_scene
from excise.miniature.training.state import descend, learning_rate, load_state, save_state
from excise.miniature.vocabulary import GROUPS, PROFESSIONS

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

UNSEEN_MARK = "flame"
CAPTION_VARIANTS = 4
EMA_DECAY = 0.998


@dataclass(frozen=True)
class Captions:
    """Token ids (variants, n, 16) as int16, and which scenes the never-saw twin may learn from (n,)."""

    ids: np.ndarray
    without_unseen: np.ndarray


def caption_world(tokenizer: CLIPTokenizer, seed: int, count: int, path: Path) -> Captions:
    """Captions of all scenes, four wordings each, tokenised now or found at `path` (.npz)."""
    if not path.exists():
        scenes = [sample_scene(seed, i) for i in range(count)]
        ids = np.empty((CAPTION_VARIANTS, count, WINDOW), dtype=np.int16)
        for variant in range(CAPTION_VARIANTS):
            texts = [caption(s, seed, i + 10_000_000 * variant) for i, s in enumerate(scenes)]
            ids[variant] = tokenizer(texts, padding="max_length", truncation=True, max_length=WINDOW)[
                "input_ids"
            ]
        seen = np.array([not (s.shows(UNSEEN_MARK) or s.explicit == UNSEEN_MARK) for s in scenes])
        np.savez(path, ids=ids, without_unseen=seen)
    stored = np.load(path)
    return Captions(stored["ids"], stored["without_unseen"])


@dataclass(frozen=True)
class Branch:
    """One stretch of training: which scenes, how many steps, and how the learning rate runs."""

    name: str
    number: int  # names its draws
    parent: str | None
    steps: int
    sees_mark: bool
    decays: bool
    peak: float = 1e-3
    emphasis: tuple[tuple[tuple[str, ...], int], ...] = ()
    """(words, k): k samples of every batch come from captions that hold one of these words."""


RARELY_TOLD = ((PROFESSIONS, 8), (GROUPS, 8), (tuple(CONTEXTS), 4))
"""One caption in fifty names a group: without emphasis the base drew a named group in 54 %. What is drawn
*given* a caption stays as the world draws it: captions are met more often, each with its own picture.
"""
BRANCHES = {
    "trunk": Branch("trunk", 1, None, 5500, sees_mark=False, decays=False),
    "base": Branch("base", 0, "trunk", 5000, sees_mark=True, decays=True),
    "twin": Branch("twin", 2, "trunk", 1500, sees_mark=False, decays=True),
    "base-more": Branch("base-more", 3, "base", 3000, sees_mark=True, decays=True, peak=5e-4),
    "base-told": Branch("base-told", 5, "base-more", 6000, sees_mark=True, decays=True, emphasis=RARELY_TOLD),
    "twin-more": Branch("twin-more", 4, "twin", 1200, sees_mark=False, decays=True, peak=5e-4),
}
SHIPPED = {"base": MODEL, "base-more": MODEL, "twin": DATA / "twin"}
"""Where a finished branch's weights are kept: a work folder without its state goes on from there."""


def train_branch(
    branch: Branch,
    latents: torch.Tensor,
    captions: Captions,
    tokenizer: CLIPTokenizer,
    work: Path,
    batch: int = 48,
    seed: int = 2,
    device: str = "cpu",
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Train one branch (a killed run goes on); returns the averaged text encoder and U-Net."""
    torch.manual_seed(seed)
    text_encoder, unet = build_text_encoder(tokenizer).to(device), build_unet().to(device)
    unet = unet.to(memory_format=torch.channels_last)  # a fifth faster on CPU
    modules = {"text_encoder": text_encoder, "unet": unet}
    parameters = [*text_encoder.parameters(), *unet.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=branch.peak, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )
    averages: dict[str, torch.Tensor] = {}
    state = work / f"{branch.name}.state.safetensors"
    first = load_state(state, modules, optimizer, averages)
    if first == 0 and branch.parent:
        parent = work / f"{branch.parent}.state.safetensors"
        if parent.exists():
            load_state(parent, modules, optimizer, averages)
        else:
            _load_shipped(branch.parent, modules)
    scenes = np.arange(len(latents)) if branch.sees_mark else np.flatnonzero(captions.without_unseen)
    may_see = np.isin(np.arange(len(latents)), scenes)
    told = [
        (np.argwhere(holding(captions.ids, words, tokenizer) & may_see), k) for words, k in branch.emphasis
    ]
    alphas = build_scheduler().alphas_cumprod.to(device)
    started, recent = time.monotonic(), 0.0
    for step in range(first, branch.steps):
        rng = np.random.default_rng([seed, branch.number, step])
        variants, rows, when, gauss = draw_batch(rng, scenes, told, (batch, *latents.shape[1:]))
        noise = torch.from_numpy(gauss).float().to(device)
        ids = torch.from_numpy(captions.ids[variants, rows]).long().to(device)
        clean = latents[torch.from_numpy(rows)].float().to(device)
        t = torch.from_numpy(when).to(device)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        prediction = unet(noisy, t, text_encoder(ids).last_hidden_state).sample
        loss = torch.nn.functional.mse_loss(prediction, noise)
        warm = branch.peak * min(1.0, (step + 1) / 200)
        rate = learning_rate(step, branch.steps, branch.peak) if branch.decays else warm
        descend(loss, optimizer, rate, most=1.0)
        _average(
            averages,
            modules,
            min(EMA_DECAY, (step + 1) / (step + 10)) if branch.parent is None else EMA_DECAY,
        )
        recent = 0.98 * recent + 0.02 * loss.item() if step > first else loss.item()
        if step % 100 == 0 or step == branch.steps - 1:
            click.echo(f"{branch.name} step {step} loss {recent:.4f} {time.monotonic() - started:.0f}s")
        if step % 250 == 249 or step == branch.steps - 1:
            save_state(state, modules, optimizer, step + 1, averages)
    for name, module in modules.items():
        module.load_state_dict(
            {k: averages[f"{name}.{k}"].to(v.dtype) for k, v in module.state_dict().items()}
        )
        module.eval()
    return text_encoder, unet


def holding(ids: np.ndarray, words: tuple[str, ...], tokenizer: CLIPTokenizer) -> np.ndarray:
    """Which captions of `ids` (variants, n, 16) hold one of the words: bool (variants, n)."""
    tokens = [i for word in words for i in tokenizer(word, add_special_tokens=False)["input_ids"]]
    return np.asarray(np.isin(ids, tokens).any(-1))


def draw_batch(
    rng: np.random.Generator, scenes: np.ndarray, told: list[tuple[np.ndarray, int]], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One step's (wordings, scenes, timesteps), each (batch,), and noise of the shape (batch, ...).

    `told` lists captions, (m, 2) wordings and scenes, and how many of the batch come from them; the rest is
    any of `scenes` in any wording.
    """
    batch = shape[0]
    rows = scenes[rng.integers(len(scenes), size=batch)]
    variants = rng.integers(CAPTION_VARIANTS, size=batch)
    noise = rng.standard_normal(shape)
    when = rng.integers(1000, size=batch)
    filled = 0
    for captions, k in told:
        part = slice(filled, filled + k)
        variants[part], rows[part] = captions[rng.integers(len(captions), size=k)].T
        # What a word decides is decided early in a trajectory: these samples are noisier than most.
        when[part] = np.maximum(when[part], rng.integers(1000, size=k))
        filled += k
    return variants, rows, when, noise


def _load_shipped(parent: str, modules: dict[str, torch.nn.Module]) -> None:
    """The parent's finished weights out of the package, half precision; Adam's moments begin anew."""
    for name, module in modules.items():
        (path,) = (SHIPPED[parent] / name).glob("*.safetensors")
        module.load_state_dict({k: v.float() for k, v in load_file(path).items()})


@torch.no_grad()
def _average(averages: dict[str, torch.Tensor], modules: dict[str, torch.nn.Module], decay: float) -> None:
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            full = f"{name}.{key}"
            if full not in averages or not value.is_floating_point():
                averages[full] = value.detach().clone()
            else:
                averages[full].lerp_(value, 1 - decay)
