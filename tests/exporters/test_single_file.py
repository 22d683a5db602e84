from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compiler.checkpoint import Checkpoint
from editspec import GateFailed, InputError
from exporters.single_file import export_single_file, verify

Copy = Callable[[Path], Path]


@pytest.fixture(scope="module")
def tiny_checkpoint_sd2(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in Stable Diffusion 2 layout: linear projections, and so open_clip's names for the text."""
    from diffusers import UNet2DConditionModel

    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("sd2") / "tiny")
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel.from_config(config | {"use_linear_projection": True})
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture(params=["sd1", "sd2", "sdxl", "fp16"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    names = {"sd1": "tiny_checkpoint", "sd2": "tiny_checkpoint_sd2", "sdxl": "tiny_checkpoint_sdxl"}
    return Checkpoint.open(request.getfixturevalue(names.get(request.param, "tiny_checkpoint_fp16")))


def states(pipeline: Any) -> list[dict[str, torch.Tensor]]:
    parts = [pipeline.unet, pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    return [part.state_dict() for part in parts if part is not None]


def test_from_single_file_gives_every_weight_back_bit_by_bit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import diffusers

    facts = export_single_file(checkpoint, tmp_path / "model.safetensors")
    assert facts["round_trip"]["identical"]
    count = sum(len(checkpoint.weights(name).entries) for name in checkpoint.weighted)
    assert facts["round_trip"]["tensors"] == count
    kind: Any = diffusers.StableDiffusionPipeline
    options: dict[str, Any] = {"safety_checker": None}
    if checkpoint.family == "sdxl":
        kind, options = diffusers.StableDiffusionXLPipeline, {"add_watermarker": False}
    dtype = torch.float16 if checkpoint.weights("unet").entries["conv_in.weight"].dtype == "F16" else None
    with warnings.catch_warnings(action="ignore"):
        plain = kind.from_pretrained(checkpoint.root, dtype=dtype, **options)
        loaded = kind.from_single_file(
            str(tmp_path / "model.safetensors"),
            config=str(checkpoint.root),
            local_files_only=True,
            dtype=dtype,
            **options,
        )
    for expected, found in zip(states(plain), states(loaded), strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_names_are_the_original_ones(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_single_file(Checkpoint.open(tiny_checkpoint), tmp_path / "model.safetensors")
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.output_blocks.1.1.conv.weight",  # no attention before this upsampler
        "first_stage_model.decoder.up.3.block.0.conv1.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    } <= names
    assert (
        load_file(tmp_path / "model.safetensors")["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4
    )


@pytest.mark.parametrize("damage", ["value", "lost", "more"])
def test_a_file_that_does_not_read_back_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    path = tmp_path / "model.safetensors"
    export_single_file(checkpoint, path)
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    if damage == "value":
        state[name].view(torch.int32).view(-1)[7] ^= 1
    elif damage == "lost":
        del state[name]
    else:
        state["model.diffusion_model.input_blocks.1.1.extra.weight"] = torch.zeros(1)
    save_file(state, path)
    with pytest.raises(GateFailed, match="does not read back"):
        verify(path, checkpoint)


def test_an_architecture_without_original_names_is_refused_before_a_file_appears(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path
) -> None:
    folder = copy_of(tiny_checkpoint)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"layers_per_block": [1, 1]}))
    with pytest.raises(InputError, match="no name for"):
        export_single_file(Checkpoint.open(folder), tmp_path / "model.safetensors")
    assert not list(tmp_path.glob("*model.safetensors*"))


def test_a_file_that_exists_stays_unless_forced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("precious")
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with pytest.raises(InputError, match="exists"):
        export_single_file(checkpoint, path)
    assert path.read_text() == "precious"
    export_single_file(checkpoint, path, force=True)
    assert verify(path, checkpoint)
