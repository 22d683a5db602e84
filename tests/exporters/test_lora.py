from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from compiler.checkpoint import Checkpoint
from compiler.unet import build_unet
from editspec import InputError
from exporters.lora import EXACT, export_lora, factor

Make = Callable[..., Path]


def prediction(unet: Any) -> torch.Tensor:
    noise = torch.Generator().manual_seed(5)
    sample, text = torch.randn(2, 4, 8, 8, generator=noise), torch.randn(2, 16, 32, generator=noise)
    with torch.no_grad():
        predicted: torch.Tensor = unet(sample, torch.tensor(501.0), text, return_dict=False)[0]
    return predicted


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 6), st.integers(0, 2**32))
def test_a_change_of_low_rank_is_given_exactly_and_with_no_more_rank_than_it_has(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    noise = torch.Generator().manual_seed(seed)
    change = torch.randn(rows, rank, generator=noise) @ torch.randn(rank, columns, generator=noise)
    found = factor(change, 64)
    assert found.rank <= min(rows, columns, rank)
    assert found.relative_error <= EXACT
    torch.testing.assert_close(found.up @ found.down, change, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 16), st.integers(2, 16), st.integers(1, 16), st.integers(0, 2**32))
def test_a_lower_rank_leaves_exactly_the_singular_values_that_it_cuts(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    change = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = factor(change, rank)
    left = torch.linalg.svdvals(change.double())[found.rank :]
    assert found.error == pytest.approx(float(left.square().sum().sqrt()), abs=1e-4)


def test_no_change_is_rank_one_of_nothing() -> None:
    found = factor(torch.zeros(3, 4), 8)
    assert (found.rank, found.relative_error) == (1, 0.0)


def test_stock_diffusers_loads_it_and_predicts_what_the_edited_model_predicts(
    tiny_checkpoint: Path, edit: Make, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    edited = Checkpoint.open(edit(tiny_checkpoint, "low rank", "kernel", "bias"))
    facts = export_lora(edited, tmp_path / "edit.safetensors")
    assert facts["exact"]
    assert facts["rank"] == 2
    with warnings.catch_warnings(action="ignore"):
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
        before = prediction(pipeline.unet)
        pipeline.load_lora_weights(tmp_path, weight_name="edit.safetensors")
    after, wanted = prediction(pipeline.unet), prediction(build_unet(edited))
    assert (before - wanted).abs().max() > 1e-2
    torch.testing.assert_close(after, wanted, rtol=0, atol=2e-5)


def test_what_does_not_fit_is_stated_and_the_rest_is_the_best_of_its_rank(
    tiny_checkpoint: Path, edit: Make, tensors: dict[str, str], tmp_path: Path
) -> None:
    edited = Checkpoint.open(edit(tiny_checkpoint, "low rank", "full rank", "norm"))
    facts = export_lora(edited, tmp_path / "edit.safetensors", rank=4)
    modules = facts["modules"]
    assert modules[tensors["low rank"].removesuffix(".weight")]["exact"]
    assert not modules[tensors["full rank"].removesuffix(".weight")]["exact"]
    assert 0 < modules[tensors["full rank"].removesuffix(".weight")]["relative_error"] < 1
    assert list(facts["left_out"]) == [tensors["norm"]]
    assert json.loads((tmp_path / "edit.safetensors.json").read_text())["modules"] == modules
    written = load_file(tmp_path / "edit.safetensors")
    assert {tensor.shape[0] for name, tensor in written.items() if "lora_A" in name} == {4}
    assert not any(name.endswith(".bias") for name in written)


def test_biases_can_be_left_out_and_then_count_as_lost(
    tiny_checkpoint: Path, edit: Make, tensors: dict[str, str], tmp_path: Path
) -> None:
    edited = Checkpoint.open(edit(tiny_checkpoint, "low rank", "bias"))
    facts = export_lora(edited, tmp_path / "edit.safetensors", biases=False)
    assert list(facts["left_out"]) == [tensors["bias"]]
    assert facts["relative_error"] > EXACT
    assert not any(name.endswith(".bias") for name in load_file(tmp_path / "edit.safetensors"))


def test_an_edit_of_norms_alone_is_refused_and_nothing_is_written(
    tiny_checkpoint: Path, edit: Make, tmp_path: Path
) -> None:
    edited = Checkpoint.open(edit(tiny_checkpoint, "norm"))
    with pytest.raises(InputError, match="nothing that a LoRA can hold"):
        export_lora(edited, tmp_path / "edit.safetensors")
    assert not list(tmp_path.glob("*.safetensors*"))


def test_equal_edits_give_equal_bytes(tiny_checkpoint: Path, edit: Make, tmp_path: Path) -> None:
    edited = Checkpoint.open(edit(tiny_checkpoint, "low rank", "kernel"))
    export_lora(edited, tmp_path / "one.safetensors")
    export_lora(edited, tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
