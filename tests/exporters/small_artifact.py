"""An artifact as `compile` lays it out, of few kilobytes: all that publishing looks at is there."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from compiler.artifact import CARD, GATES, GRID, SPEC, Artifact
from registry.manifest import write_manifest

CARD_TEXT = "---\nlicense: apache-2.0\nlibrary_name: diffusers\n---\n\n# Small, version {}\n"


def build(folder: Path, version: int = 1, files: Mapping[str, bytes] | None = None) -> Path:
    """Write it; `files` (contents by name) come on top, or replace what is there."""
    numbers = random.Random(version)
    contents = {
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}\n',
        "unet/config.json": b'{"sample_size": 8}\n',
        "unet/diffusion_pytorch_model.safetensors": numbers.randbytes(150_000),
        "vae/diffusion_pytorch_model.safetensors": b"the same in every version" * 100,
        "text_encoder/model.safetensors": numbers.randbytes(70_000),
        "tokenizer/merges.txt": b"#version: 0.2\n",
        GRID: numbers.randbytes(5_000),
        CARD: CARD_TEXT.format(version).encode("utf-8"),
        **(files or {}),
    }
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    artifact = Artifact(folder)
    artifact.write(SPEC, {"editspec": 1, "name": "small", "version": version})
    artifact.write(GATES, {"gates": [], "passed": True})
    write_manifest(artifact)
    return folder
