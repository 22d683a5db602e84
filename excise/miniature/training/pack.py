"""Packs finished training into package data: a diffusers folder, the twin, the evaluators, digests."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch

from excise.miniature.architecture import build_scheduler, build_tokenizer
from excise.miniature.training.autoencoder import furthest
from excise.miniature.vocabulary import vocabulary

DATA = Path(__file__).parents[1] / "data"
EVALUATORS = ("oracle-a", "oracle-b", "mini-clip")


def pack(work: Path, data: Path = DATA) -> None:
    """Write `data` anew from a work folder; what was not trained there stays as it was."""
    base, twin = _furthest(work, "base"), _furthest(work, "twin")
    fresh = data.with_name("data.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    if data.exists():
        shutil.copytree(data, fresh)
    if (base / "unet").exists():
        _pack_model(work, base, fresh / "model")
    elif (work / "vae-more" / "config.json").exists():  # its encoder is the shipped one: the U-Net stays
        _replace(work / "vae-more", fresh / "model" / "vae")
    for part in ("text_encoder", "unet"):
        if (twin / part).exists():
            _replace(twin / part, fresh / "twin" / part)
    for name in EVALUATORS:
        if (work / name / "config.json").exists():
            _replace(work / name, fresh / name)
    for config in fresh.rglob("*.json"):
        _scrub(config)
    digests = {
        str(p.relative_to(fresh)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(fresh.rglob("*.safetensors"))
    }
    (fresh / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")
    for path in fresh.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(data, ignore_errors=True)
    fresh.rename(data)


def _pack_model(work: Path, base: Path, folder: Path) -> None:
    """The diffusers folder of the finished base, in half precision."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    half = {"torch_dtype": torch.float16, "use_safetensors": True}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(furthest(work), **half),
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
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)


def _replace(trained: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained, folder)


def _furthest(work: Path, branch: str) -> Path:
    """The folder of a branch's last finished training."""
    stages = [work / f"{branch}-{last}" for last in ("told", "more")]
    return next((stage for stage in stages if (stage / "unet").exists()), work / branch)


def _scrub(config: Path) -> None:
    """Remove local paths that the libraries write into their configs."""
    document = json.loads(config.read_text())
    if isinstance(document, dict) and "_name_or_path" in document:
        del document["_name_or_path"]
        config.write_text(json.dumps(document, indent=2) + "\n")
