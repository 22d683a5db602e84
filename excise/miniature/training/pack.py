"""Packs finished training into package data: a diffusers folder, the twin, the evaluators, digests."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch

from excise.miniature.architecture import build_scheduler, build_tokenizer
from excise.miniature.vocabulary import vocabulary

DATA = Path(__file__).parents[1] / "data"


def pack(work: Path, data: Path = DATA) -> None:
    """Write `data` anew from a work folder; what has not been trained yet is left out."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    base, twin = _furthest(work, "base"), _furthest(work, "twin")
    half = {"torch_dtype": torch.float16, "use_safetensors": True}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae", **half),
        text_encoder=CLIPTextModel.from_pretrained(
            base / "text_encoder", dtype=torch.float16, use_safetensors=True
        ),
        tokenizer=build_tokenizer(work / "tokenizer", vocabulary()),
        unet=UNet2DConditionModel.from_pretrained(base / "unet", **half),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    fresh = data.with_name("data.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh / "model", safe_serialization=True)
    for part in ("text_encoder", "unet"):
        if (twin / part).exists():
            shutil.copytree(twin / part, fresh / "twin" / part)
    for name in ("oracle-a", "oracle-b", "mini-clip"):
        if (work / name / "config.json").exists():
            shutil.copytree(work / name, fresh / name)
    for config in fresh.rglob("*.json"):
        _scrub(config)
    for kept in ("acceptance.json", "CARD.md"):
        if (data / kept).exists():
            shutil.copy(data / kept, fresh / kept)
    digests = {
        str(p.relative_to(fresh)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(fresh.rglob("*.safetensors"))
    }
    (fresh / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")
    for path in fresh.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(data, ignore_errors=True)
    fresh.rename(data)


def _furthest(work: Path, branch: str) -> Path:
    """The folder of a branch's last finished training."""
    more = work / f"{branch}-more"
    return more if (more / "unet").exists() else work / branch


def _scrub(config: Path) -> None:
    """Remove local paths that the libraries write into their configs."""
    document = json.loads(config.read_text())
    if isinstance(document, dict) and "_name_or_path" in document:
        del document["_name_or_path"]
        config.write_text(json.dumps(document, indent=2) + "\n")
