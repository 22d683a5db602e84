"""Trains the mini-CLIP: pictures and captions in one space, for CLIP score and zero-shot checks.

Captions alone teach it objects very slowly: in a batch of this world colours, ground and style tell nearly
every picture from every other, so nothing asks what is drawn. Hence a second loss beside the contrastive one:
a picture shall also be nearest to the short text of each thing that it shows, among all things of that kind
(unified contrastive learning, Yang et al. 2022, where a label is one more caption).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from torch.nn import functional

from excise.miniature.architecture import IMAGE_SIZE, TEXT_WIDTH, WINDOW
from excise.miniature.labels import LABEL_GROUPS, SKIP, truth
from excise.miniature.scene import sample_scene
from excise.miniature.training.autoencoder import to_model_range
from excise.miniature.training.diffusion import CAPTION_VARIANTS, Captions
from excise.miniature.training.state import descend, learning_rate, load_state, save_state
from excise.miniature.vocabulary import OBJECTS, TEMPLATES

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

MEDIA = ("drawing", "picture", "photo", "scene")
#: Label group -> the sentences that name one thing of it, all of which the captions of the world use too.
SENTENCES: dict[str, tuple[str, ...]] = {
    "object": TEMPLATES,
    "style": tuple(f"a {{}} {medium}" for medium in MEDIA),
    "colour": tuple(f"a {{}} {name}" for name in OBJECTS),
    "background": tuple(f"a {medium} on {{}}" for medium in MEDIA),
    "profession": TEMPLATES,
}
OFTEN = ("object", "style", "colour", "background")
"""Kinds that are asked for at each step; the others, with their many names, at every second one."""
NAMED = {group: [name for name in LABEL_GROUPS[group] if name != "none"] for group in SENTENCES}
"""No caption says that a picture shows no object, or is in no style."""
HELD_OUT = 1000
"""The world's last pictures, which only show how training goes on."""


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A vision transformer over 8x8 patches and a two-layer text model, both into 64 dimensions.

    Things stand near the middle of a picture, so sixteen patches tell them apart as well as sixty-four of
    4x4 do, at a quarter of the price.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )


def truths(seed: int, count: int) -> np.ndarray:
    """Index of the right name in every label group for scenes 0..count-1, (count, groups); SKIP: none."""
    found = np.stack([truth(sample_scene(seed, index)) for index in range(count)])
    for group, names in NAMED.items():  # "none" comes last
        column = found[:, list(LABEL_GROUPS).index(group)]
        column[column >= len(names)] = SKIP
    return found


class Names:
    """The texts of all things of each kind, with which the world's pictures are classified."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.ids: dict[str, torch.Tensor] = {}  # (sentences, names, window)
        for group, sentences in SENTENCES.items():
            texts = [[sentence.format(name) for name in NAMED[group]] for sentence in sentences]
            self.ids[group] = torch.stack([_tokens(tokenizer, row) for row in texts])
        self.columns = {group: list(LABEL_GROUPS).index(group) for group in SENTENCES}

    def drawn(self, rng: np.random.Generator, step: int) -> dict[str, torch.Tensor]:
        """One sentence of each kind whose turn it is, with every name in it: (names, window)."""
        asked = self.ids if step % 2 else OFTEN
        return {group: self.ids[group][int(rng.integers(len(self.ids[group])))] for group in asked}


def _tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return torch.tensor(
        tokenizer(texts, padding="max_length", truncation=True, max_length=WINDOW)["input_ids"]
    )


def _trimmed(ids: torch.Tensor, eos: int) -> torch.Tensor:
    """Without the last columns, where every text is over: what stands there reaches nothing."""
    return ids[:, : int((ids != eos).sum(1).max()) + 1]


def contrastive_loss(logits: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy of pictures and captions, (n, n); equal captions share the target.

    CLIP's own loss (Radford et al. 2021) calls a picture wrong for the very caption it has when another
    picture of the batch has it too.
    """
    same = (captions[:, None] == captions[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def naming_loss(
    pictures: torch.Tensor, names: Mapping[str, torch.Tensor], answers: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Sum over kinds of the cross-entropy of the right name; `names` (names, width) carry the scale."""
    losses = [
        functional.cross_entropy(pictures @ texts.T, answers[group], ignore_index=SKIP)
        for group, texts in names.items()
        if bool((answers[group] != SKIP).any())
    ]
    return torch.stack(losses).sum()


def train_clip(
    tokenizer: CLIPTokenizer,
    pixels: np.ndarray,
    captions: Captions,
    world_seed: int,
    work: Path,
    steps: int = 2200,
    batch: int = 128,
    peak: float = 1e-3,
    seed: int = 5,
) -> CLIPModel:
    """Train on the drawn world, a killed run going on; saved as a transformers CLIP folder."""
    torch.manual_seed(seed)
    model = build_clip(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    state = work / "mini-clip.state.safetensors"
    first = load_state(state, {"model": model}, optimizer)
    eos = tokenizer.eos_token_id
    # An empty caption matches every picture.
    spoken = np.flatnonzero((captions.ids[:, :, 1] != eos).all(axis=0))
    unseen, spoken = spoken[spoken >= len(pixels) - HELD_OUT], spoken[spoken < len(pixels) - HELD_OUT]
    names, answers = Names(tokenizer), truths(world_seed, len(pixels))
    started = time.monotonic()
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        rows = spoken[rng.integers(len(spoken), size=batch)]
        told = rows[: batch // 2]  # texts cost as much as pictures, and the short ones teach more
        ids = torch.from_numpy(captions.ids[rng.integers(CAPTION_VARIANTS, size=len(told)), told]).long()
        asked = names.drawn(rng, step)
        pictures = _unit(model.get_image_features(pixel_values=to_model_range(pixels[rows])))
        read = _trimmed(torch.cat([ids, *asked.values()]), eos)
        texts = _unit(model.get_text_features(input_ids=read)) * model.logit_scale.exp()
        said, *named = texts.split([len(ids), *(len(one) for one in asked.values())])
        right = {group: torch.from_numpy(answers[rows, names.columns[group]]) for group in asked}
        naming = naming_loss(pictures, dict(zip(asked, named, strict=True)), right)
        contrast = contrastive_loss(pictures[: len(ids)] @ said.T, ids)
        descend(contrast + naming, optimizer, learning_rate(step, steps, peak), most=1.0)
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))  # as CLIP does
        if step % 250 == 0 or step == steps - 1:
            found = told_apart(model, names, pixels[unseen], answers[unseen])
            shares = " ".join(f"{group} {share:.3f}" for group, share in found.items())
            losses = f"loss {contrast.item():.3f} {naming.item():.3f}"
            click.echo(f"mini-clip step {step} {losses} {shares} {time.monotonic() - started:.0f}s")
            save_state(state, {"model": model}, optimizer, step + 1)
    _save(model, tokenizer, work / "mini-clip")
    return model.float()


@torch.no_grad()
def told_apart(model: CLIPModel, names: Names, pixels: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Share of pictures that are nearest to the right name of each kind, in the kind's first sentence."""
    pictures = model.get_image_features(pixel_values=to_model_range(pixels)).pooler_output
    found = {}
    for group, ids in names.ids.items():
        right = answers[:, names.columns[group]]
        nearest = (pictures @ _unit(model.get_text_features(input_ids=ids[0])).T).argmax(1).numpy()
        found[group] = float((nearest == right)[right != SKIP].mean())
    return found


def _unit(output: object) -> torch.Tensor:
    """The projected features of one of the two towers, of unit length."""
    features: torch.Tensor = output.pooler_output  # type: ignore[attr-defined]
    return functional.normalize(features, dim=-1)


def _save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """A folder that transformers' CLIPModel, tokenizer and image processor load."""
    model.eval().half().save_pretrained(folder)
    # What the last call asked of it would be saved with it.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "do_center_crop": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
