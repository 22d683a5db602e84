"""An artifact as `compile` lays it out, of few kilobytes: all that publishing looks at is there."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from compiler.artifact import CARD, DELTAS, EDITS, GATES, GRID, LOCK, PLAN, SPEC, Artifact
from exporters.inventory import Inventory
from exporters.manifest import write_manifest
from exporters.release import Release

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
        DELTAS: numbers.randbytes(3_000),
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
    artifact.write(LOCK, {"base": {"digest": "0" * 64, "files": {}}, "libraries": {}, "device": {}})
    artifact.write(PLAN, {})
    artifact.write(EDITS, {})
    artifact.write(GATES, {"gates": [], "passed": True})
    write_manifest(artifact)
    return folder


def read(folder: Path) -> Release:
    """The folder as what is to be published."""
    return Release.of(folder, Inventory.of(folder).digests())


def contents(folder: Path) -> dict[str, bytes]:
    """All its files."""
    return {name: (folder / name).read_bytes() for name in Artifact(folder).files()}
