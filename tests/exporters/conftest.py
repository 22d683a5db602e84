"""What exports are tried on: a checkpoint with edits of known shape; small artifacts and a Hub to push to.

The edits: low rank, full rank, a kernel, a bias and a norm.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_hub import TOKEN, LocalHub, short_waits
from signing_keys import Keys
from small_artifact import build

TENSORS = {
    "low rank": "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "full rank": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight",
    "kernel": "down_blocks.0.resnets.0.conv1.weight",
    "bias": "mid_block.resnets.0.conv1.bias",
    "norm": "down_blocks.0.resnets.0.norm1.weight",
}
RANK = 2  # of the first and the third


@pytest.fixture
def tensors() -> dict[str, str]:
    """What is edited, to the U-Net's name of it."""
    return TENSORS


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., Path]:
    """A function: a base and keys of TENSORS to an edited folder, which records its changes or not."""

    def make(base: Path, *edited: str, recorded: bool = True) -> Path:
        import torch

        from compiler import deltas
        from compiler.artifact import DELTAS
        from compiler.checkpoint import Checkpoint
        from compiler.link import link

        opened = Checkpoint.open(base)
        changes = {}
        noise = torch.Generator().manual_seed(3)
        for name in map(TENSORS.__getitem__, edited):
            shape = opened.weights("unet").entries[name].shape
            change = 0.05 * torch.randn(shape, generator=noise)
            if name in (TENSORS["low rank"], TENSORS["kernel"]):
                rows = 0.05 * torch.randn(shape[0], RANK, generator=noise)
                change = (rows @ torch.randn(RANK, change[0].numel(), generator=noise)).reshape(shape)
            changes[name] = change
        out = tmp_path / f"edited-{sum(1 for _ in tmp_path.glob('edited-*'))}"
        link(opened, changes, out)
        if recorded:
            (out / "provenance").mkdir()
            deltas.save(changes, out / DELTAS)
        return out

    return make


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub on loopback that the client in this process talks to, by LFS, in parts above 64 kB."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_OIDC_RESOURCE", raising=False)
    with LocalHub(part_bytes=2**16) as hub, short_waits():
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[..., Path]:
    """A function that builds a small artifact in a fresh folder, different for every `version`."""

    def make(version: int = 1, **files: bytes) -> Path:
        return build(tmp_path / f"artifact-{version}-{len(list(tmp_path.iterdir()))}", version, files)

    return make


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Keys and certificates of this test."""
    (tmp_path / "keys").mkdir()
    return Keys(tmp_path / "keys")


@pytest.fixture
def built(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A compiled artifact that a test may change."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "built"))


@pytest.fixture
def signed(built: Path, keys: Keys) -> tuple[Path, Path]:
    """`built`, signed, and the public key."""
    from exporters.sign import Signer, sign_artifact

    private, public = keys.pair("release")
    sign_artifact(built, Signer(key=private))
    return built, public
