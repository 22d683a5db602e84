"""Trains the mini-CLIP: pictures and captions in one space, for CLIP score and zero-shot checks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch

from excise.miniature.architecture import IMAGE_SIZE, TEXT_WIDTH, WINDOW
from excise.miniature.training.autoencoder import to_model_range
from excise.miniature.training.diffusion import CAPTION_VARIANTS, Captions
from excise.miniature.training.state import learning_rate, load_state, save_state

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A vision transformer over 4x4 patches and a two-layer text model, both into 64 dimensions."""
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
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=4,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )


def train_clip(
    tokenizer: CLIPTokenizer,
    pixels: np.ndarray,
    captions: Captions,
    work: Path,
    steps: int = 1500,
    batch: int = 128,
    peak: float = 1e-3,
    seed: int = 5,
) -> CLIPModel:
    """Contrastive training (Radford et al. 2021) on the drawn world; saved as a transformers CLIP folder."""
    torch.manual_seed(seed)
    model = build_clip(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    state = work / "mini-clip.state.safetensors"
    first = load_state(state, {"model": model}, optimizer)
    eos = tokenizer.eos_token_id
    spoken = np.flatnonzero(
        (captions.ids[:, :, 1] != eos).all(axis=0)
    )  # an empty caption matches every picture
    started = time.monotonic()
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        rows = spoken[rng.integers(len(spoken), size=batch)]
        ids = torch.from_numpy(captions.ids[rng.integers(CAPTION_VARIANTS, size=batch), rows]).long()
        out = model(input_ids=ids, pixel_values=to_model_range(pixels[rows]), return_loss=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            click.echo(f"mini-clip step {step} loss {out.loss.item():.3f} {time.monotonic() - started:.0f}s")
            save_state(state, {"model": model}, optimizer, step + 1)
    folder = work / "mini-clip"
    model.eval().half().save_pretrained(folder)
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
    return model.float()
