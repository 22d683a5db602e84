from __future__ import annotations

from pathlib import Path

import pytest

from compiler.checkpoint import Checkpoint
from compiler.cost import eval_flops, eval_seconds
from compiler.device import Device
from compiler.safetensors_file import TensorEntry


def entries_of(model: object) -> dict[str, TensorEntry]:
    return {
        name: TensorEntry(name, "F16", tuple(tensor.shape), Path("x"), 0, 0)
        for name, tensor in model.state_dict().items()  # type: ignore[attr-defined]
    }


def test_an_eval_of_stable_diffusion_1_at_512_px_costs_what_the_literature_says() -> None:
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    assert eval_flops(entries_of(model), dict(model.config), 77) == pytest.approx(0.80e12, rel=0.05)


def test_the_count_agrees_with_torch_on_a_tiny_model(tiny_checkpoint: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    model = UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet", use_safetensors=True)
    text = torch.zeros(1, 16, model.config.cross_attention_dim)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 4, 8, 8), 1, text)
    ours = eval_flops(entries_of(model), dict(model.config), 16)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_a_faster_device_takes_less_time(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    slow, fast = Device("cpu", "x", 1, 1), Device("cpu", "x", 1, 16)
    assert 0 < eval_seconds(checkpoint, fast) < eval_seconds(checkpoint, slow)
