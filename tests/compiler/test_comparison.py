from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compiler.checkpoint import Checkpoint
from compiler.comparison import compare, relative, tensors_of

UNET = Path("unet", "diffusion_pytorch_model.safetensors")


def _changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Checkpoint:
    weights = load_file(folder / UNET)
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / UNET, metadata={"format": "pt"})
    return Checkpoint.open(folder)


def test_a_checkpoint_equals_itself_in_every_component(tiny_checkpoint: Path) -> None:
    base, counted = Checkpoint.open(tiny_checkpoint), list[int]()
    found = compare(base, base, counted.append)
    assert [one.component for one in found] == ["text_encoder", "unet", "vae"]
    assert all(one.equal and one.relative == 0 and one.energy > 0 for one in found)
    assert sum(counted) == tensors_of(base, base) == sum(one.tensors for one in found)


def test_what_moved_is_told_with_its_size_and_place(
    tiny_checkpoint: Path, copy_of: Callable[[Path], Path]
) -> None:
    base, name = Checkpoint.open(tiny_checkpoint), "up_blocks.1.attentions.0.proj_out.bias"
    before = base.weights("unet").read(name)

    def move(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = weights[name] + torch.linspace(0, 0.5, len(before))

    found = {one.component: one for one in compare(base, _changed(copy_of(tiny_checkpoint), move))}
    assert found["vae"].equal
    (moved,) = found["unet"].moved
    expected = torch.linspace(0, 0.5, len(before)).norm() / before.norm()
    assert moved.name == name
    assert moved.relative == pytest.approx(float(expected), rel=1e-5)
    assert moved.largest == pytest.approx(0.5, rel=1e-5)
    assert found["unet"].by_group() == {"up_blocks.1 attentions": (1, moved.relative)}
    assert 0 < found["unet"].relative < moved.relative
    assert found["unet"].as_dict()["moved"][name]["largest"] == pytest.approx(0.5, rel=1e-3)


def test_number_formats_are_told_apart_from_values(
    tiny_checkpoint: Path, copy_of: Callable[[Path], Path]
) -> None:
    base = Checkpoint.open(tiny_checkpoint)

    def halve(weights: dict[str, torch.Tensor]) -> None:
        weights["conv_in.bias"] = torch.zeros(len(weights["conv_in.bias"])).half()

    def zero(weights: dict[str, torch.Tensor]) -> None:
        weights["conv_in.bias"] = torch.zeros(len(weights["conv_in.bias"]))

    half, whole = (_changed(copy_of(tiny_checkpoint), change) for change in (halve, zero))
    unet = compare(half, whole)[1]
    assert unet.equal
    assert unet.retyped == ("conv_in.bias",)
    assert not compare(base, whole)[1].retyped
    assert math.isinf(compare(half, base)[1].moved[0].relative)  # from nought to something
    assert compare(half, base)[1].as_dict()["moved"]["conv_in.bias"]["relative_change"] is None


def test_tensors_that_one_lacks_or_has_in_another_shape_are_named(
    tiny_checkpoint: Path, tiny_checkpoint_sdxl: Path
) -> None:
    first, second = Checkpoint.open(tiny_checkpoint), Checkpoint.open(tiny_checkpoint_sdxl)
    found = {one.component: one for one in compare(first, second)}
    assert found["text_encoder_2"].only_second == tuple(sorted(second.weights("text_encoder_2").entries))
    assert any(name.startswith("add_embedding.") for name in found["unet"].only_second)
    assert any(name.endswith("attn2.to_k.weight") for name in found["unet"].reshaped)  # the text is wider
    assert not found["unet"].equal


def test_relative_sizes_come_from_squares() -> None:
    assert (relative(4.0, 1.0), relative(0.0, 0.0), relative(0.0, 1.0)) == (0.5, 0.0, math.inf)
