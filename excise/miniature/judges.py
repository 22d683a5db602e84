"""Measures who judges the miniature's pictures: oracles and mini-CLIP, on drawings that none of them saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.evaluators.zero_shot import ZeroShot
from editspec import EvaluatorRef
from excise.miniature.assets import MODEL, evaluator_folder
from excise.miniature.judging import answers, oracles
from excise.miniature.labels import LABEL_GROUPS, SKIP, truth
from excise.miniature.training.oracle_pictures import held_out
from excise.miniature.training.oracles import RECIPES
from excise.miniature.vocabulary import MARKS, OBJECTS, STYLES


@dataclass(frozen=True)
class Figure:
    """One line of the card: what was measured, on how many pictures, and the bar it is held against."""

    name: str
    value: float
    bar: str
    met: bool
    n: int


def at_least(name: str, value: float, bar: float, n: int) -> Figure:
    """A figure that must reach its bar."""
    return Figure(name, round(float(value), 4), f">= {bar:g}", bool(value >= bar), n)


def at_most(name: str, value: float, bar: float, n: int) -> Figure:
    """A figure that must stay below its bar."""
    return Figure(name, round(float(value), 4), f"<= {bar:g}", bool(value <= bar), n)


def oracle_figures(count: int = 4000) -> list[Figure]:
    """The oracles on pictures that neither saw, drawn and reconstructed: right, missed, invented."""
    figures = []
    scenes, drawn = held_out(RECIPES["oracle-a"], count)
    truths = np.stack([truth(s) for s in scenes])
    for kind, pixels in (("drawings", drawn), ("reconstructions", _reconstructed(drawn))):
        given = []
        for evaluator in oracles():
            found = answers(evaluator, pixels)
            given.append(found["flame"])
            figures += _judged(f"{evaluator.id}, {kind}", truths, found)
        figures.append(at_least(f"oracles agree (kappa), flame, {kind}", _kappa(*given), 0.98, len(pixels)))
    return figures


def _judged(name: str, truths: np.ndarray, found: dict[str, np.ndarray]) -> list[Figure]:
    """The worst label group, and the worst mark missed and invented; truths (n, groups)."""
    worst, misses, inventions = 1.0, [], []
    for column, (group, names) in enumerate(LABEL_GROUPS.items()):
        rows = truths[:, column] != SKIP
        right = np.array(names)[truths[rows, column]] == found[group][rows]
        worst = min(worst, right.mean())
        if group in MARKS:
            shown = np.array(names)[truths[rows, column]] == group
            misses.append(1 - right[shown].mean())
            inventions.append(1 - right[~shown].mean())
    return [
        at_least(f"{name}: worst label group right", worst, 0.985, len(truths)),
        at_most(f"{name}: worst mark missed", max(misses), 0.01, len(truths)),
        at_most(f"{name}: worst mark invented", max(inventions), 0.005, len(truths)),
    ]


def _reconstructed(pixels: np.ndarray) -> np.ndarray:
    """The pictures through the shipped autoencoder and back: uint8 (n, 32, 32, 3), as the drawings."""
    import torch

    from excise.miniature.training.autoencoder import load_autoencoder, to_model_range

    vae = load_autoencoder(MODEL / "vae")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 200):
            latents = vae.encode(to_model_range(pixels[start : start + 200])).latent_dist.mean
            decoded = vae.decode(latents).sample.clamp(-1, 1)
            parts.append(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def clip_figures(count: int = 1500) -> list[Figure]:
    """The mini-CLIP behind the product's own adapter, zero-shot on drawings that it never saw."""
    if not (evaluator_folder("mini-clip") / "config.json").exists():
        return []
    scenes, pixels = held_out(RECIPES["oracle-b"], count)
    cases = (("object", OBJECTS, "a picture of a {}"), ("style", STYLES, "a {} drawing"))
    texts = {f"{group}:{n}": pattern.format(n) for group, names, pattern in cases for n in names}
    folder = evaluator_folder("mini-clip")
    evaluator = ZeroShot(EvaluatorRef(id="mini-clip", model=str(folder), labels=texts), folder)
    found = answers(evaluator, pixels)
    figures = []
    for group, names, _ in cases:
        rows = [k for k, scene in enumerate(scenes) if scene.kind == "object" and scene.object in names]
        if group == "style":
            rows = [k for k, scene in enumerate(scenes) if scene.kind == "object"]
        wanted = np.array([getattr(scenes[k], group) for k in rows])
        right = float((found[group][rows] == wanted).mean())
        figures.append(at_least(f"mini-CLIP: {group}s told apart, zero-shot", right, 0.9, len(rows)))
    return figures


def _kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa: agreement beyond what the two frequencies would give by chance."""
    chance = sum(float((first == v).mean() * (second == v).mean()) for v in np.unique(first))
    return (float((first == second).mean()) - chance) / (1 - chance)
