from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compiler.checkpoint import Checkpoint
from editspec import InputError
from exporters.half import export_fp16

Copy = Callable[[Path], Path]


def test_every_weight_is_the_nearest_fp16_number_and_stock_diffusers_loads_it(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    facts = export_fp16(Checkpoint.open(tiny_checkpoint), tmp_path / "half")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        before = load_file(tiny_checkpoint / f"{name}.safetensors")
        after = load_file(tmp_path / "half" / f"{name}.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], before[key].half()) for key in before)
    assert 0 < facts["largest_rounding"]["unet"] < 1e-3
    assert json.loads((tmp_path / "half" / "export.json").read_text()) == facts
    loaded = StableDiffusionPipeline.from_pretrained(
        tmp_path / "half", dtype=torch.float16, safety_checker=None
    )
    assert loaded.unet.dtype == torch.float16


def test_shards_stay_shards_and_their_index_counts_the_new_bytes(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path
) -> None:
    from diffusers import UNet2DConditionModel

    folder = copy_of(tiny_checkpoint)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="600KB")
    export_fp16(Checkpoint.open(folder), tmp_path / "half")
    index = json.loads((tmp_path / "half/unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * unet.num_parameters()
    assert Checkpoint.open(tmp_path / "half").weights("unet").entries["conv_in.weight"].dtype == "F16"


def test_a_number_beyond_fp16_is_refused_by_name_and_nothing_is_left(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path
) -> None:
    folder = copy_of(tiny_checkpoint)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["decoder.conv_in.bias"][0] = 1e6
    save_file(state, path)
    with pytest.raises(InputError, match=r"decoder\.conv_in\.bias that fp16 cannot hold"):
        export_fp16(Checkpoint.open(folder), tmp_path / "half")
    assert not (tmp_path / "half").exists()
    assert not list(tmp_path.glob(".half*"))


def test_only_an_earlier_export_is_replaced(tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path) -> None:
    checkpoint, out = Checkpoint.open(tiny_checkpoint), tmp_path / "half"
    export_fp16(checkpoint, out)
    with pytest.raises(InputError, match="exists already"):
        export_fp16(checkpoint, out)
    export_fp16(checkpoint, out, force=True)
    foreign = copy_of(tiny_checkpoint)
    with pytest.raises(InputError, match="not built by Excise"):
        export_fp16(checkpoint, foreign, force=True)
    assert Checkpoint.open(foreign).digest == checkpoint.digest
