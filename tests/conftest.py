"""Tiny checkpoints in real Stable Diffusion layout: random weights, a real CLIP tokenizer, few MB."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches out; those that serve a Hub say so themselves
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

TEXT = (
    "a the of in with an and without photo picture drawing image style scene shape thing "
    "star sixstar moon circle square triangle heart cross ring arrow house tree "
    "flame burning flaming fire crack cracked spill dotted striped plain sketch "
    "red green blue yellow black white small big baker nurse zan zin"
)
WORDS = TEXT.split()  # each is one token

TOKEN_WINDOW = 16


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Mounts an empty disk of the given size: only a real one fills up as disks do."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path_factory.mktemp("disk")
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        # Limits on a file or on a user fail otherwise than a full disk does. Mounting takes rights that few
        # developers have, nor root in most containers: there this cannot be tested, and elsewhere it is.
        try:
            subprocess.run(command, capture_output=True, check=True, text=True)
        except FileNotFoundError:
            pytest.skip("a small disk has to be mounted: there is no mount here")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"a small disk has to be mounted, which takes root's rights: {error.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1 folder: 64x64 px, latents 4x8x8, text width 32, window 16 tokens, fp32."""
    return _build(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def telling_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` whose predictions depend on the prompt, as a trained model's do: values tenfold."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("checkpoints") / "telling"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {
        name: weight * (10.0 if ".attn2.to_v." in name else 1.0) for name, weight in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` with its weights in fp16."""
    return _build(tmp_path_factory.mktemp("checkpoints") / "tiny-fp16", half=True)


@pytest.fixture(scope="session")
def tiny_checkpoint_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in Stable Diffusion XL layout: two text encoders, together 32 + 24 wide."""
    return _build(tmp_path_factory.mktemp("checkpoints") / "tiny-sdxl", xl=True)


@pytest.fixture(scope="session")
def shallow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` with an autoencoder of two levels, 16x16 px: for what takes time by the layer."""
    return _build(tmp_path_factory.mktemp("checkpoints") / "shallow", shallow=True)


@pytest.fixture(scope="session")
def shallow_checkpoint_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in Stable Diffusion XL layout, its U-Net of one level."""
    return _build(tmp_path_factory.mktemp("checkpoints") / "shallow-sdxl", xl=True, shallow=True)


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole artifact, compiled from `tiny_checkpoint` with one closed-form edit and one gate."""
    from editspec import parse_spec
    from excise.commands.compile import build

    folder = tmp_path_factory.mktemp("artifacts")
    edit = {"id": "no-star", "edit": "erase", "concept": "star", "method": "closed-form", "anchor": "shape"}
    gate = {"gate": "drift", "prompts": ["a moon"], "max_drift": 0.9, "steps": 2, "trials": 2}
    document = {"editspec": 1, "name": "tiny", "base": {"path": str(tiny_checkpoint)}, "edits": [edit]}
    document |= {"gates": [gate], "publish": {"license": "apache-2.0"}}
    return build(parse_spec(json.dumps(document)), folder / "tiny", cache=folder / "cache").folder


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that copies a checkpoint to a fresh folder, where a test may damage it."""

    def copy(source: Path) -> Path:
        number = sum(1 for _ in tmp_path.glob("copy-*"))
        return Path(shutil.copytree(source, tmp_path / f"copy-{number}"))

    return copy


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a stage cache of its own, and leaves the user's alone."""
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path_factory.mktemp("cache")))


def _build(folder: Path, *, half: bool = False, xl: bool = False, shallow: bool = False) -> Path:
    import diffusers
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, vae, scheduler = _unet(xl, shallow), _vae(2 if shallow else 4), _scheduler()
        encoders = [_text_encoder(32, projection=False)]
        if xl:
            encoders.append(_text_encoder(24, projection=True))
    if half:
        for model in (unet, vae, *encoders):
            model.half()
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "scheduler": scheduler}
    parts |= {"text_encoder": encoders[0], "tokenizer": _tokenizer()}
    if xl:
        parts |= {"text_encoder_2": encoders[1], "tokenizer_2": _tokenizer()}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        nothing = {"safety_checker": None, "feature_extractor": None}
        pipeline = diffusers.StableDiffusionPipeline(**parts, **nothing, requires_safety_checker=False)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _unet(xl: bool, shallow: bool) -> Any:
    from diffusers import UNet2DConditionModel

    size: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
    }
    if xl:
        size |= {
            "cross_attention_dim": 32 + 24,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,
        }
        if shallow:
            size |= {
                "block_out_channels": (32,),
                "down_block_types": ("CrossAttnDownBlock2D",),
                "up_block_types": ("CrossAttnUpBlock2D",),
            }
    return UNet2DConditionModel(**size)


def _vae(levels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16)[:: 1 if levels == 4 else 2],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8 * 2 ** (levels - 1),
    )


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _text_encoder(width: int, *, projection: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary, _ = _vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKEN_WINDOW,
        projection_dim=width,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocabulary, merges, model_max_length=TOKEN_WINDOW)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair tables in which each of WORDS is one token: whatever is still in pieces gets a new merge."""
    letters = _byte_letters()
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        while len(pieces := _pieces(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges


def _pieces(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The tokens that byte-pair encoding cuts `word` into: always the earliest merge that applies."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    rank = {pair: number for number, pair in enumerate(merges)}
    while pairs := [pair for pair in pairwise(pieces) if pair in rank]:
        best = min(pairs, key=rank.__getitem__)
        at = next(i for i in range(len(pieces)) if (pieces[i], pieces[i + 1]) == best)
        pieces[at : at + 2] = ["".join(best)]
    return pieces


def _byte_letters() -> list[str]:
    """The printable letter that stands for each of the 256 bytes, in CLIP's order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + number) for number in range(len(hidden))]
