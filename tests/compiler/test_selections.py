from __future__ import annotations

from pathlib import Path

import pytest

from compiler.checkpoint import Checkpoint
from compiler.safetensors_file import TensorEntry
from compiler.selections import SELECTIONS, biases, select, text_alone

#: METHODS, section 1: modules and parameters of Stable Diffusion 1.4.
PUBLISHED = {
    "cross-attention": (64, 43.96e6),
    "cross-attention-kv": (32, 19.17e6),
    "non-cross-attention": (218, 815e6),
    "self-attention": (64, 49.6e6),
    "full": (282, 859e6),
}


@pytest.fixture(scope="module")
def sd14() -> dict[str, TensorEntry]:
    """The U-Net of Stable Diffusion 1.4 as names and shapes."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    return {
        name: TensorEntry(name, "F16", tuple(tensor.shape), Path("unet"), 0, 2 * tensor.numel())
        for name, tensor in unet.state_dict().items()
    }


@pytest.mark.parametrize("selection", PUBLISHED)
def test_a_selection_of_sd14_has_its_published_size(sd14: dict[str, TensorEntry], selection: str) -> None:
    names = select(sd14, selection)
    modules, parameters = PUBLISHED[selection]
    assert len([name for name in names if name.endswith(".weight")]) == modules
    assert sum(sd14[name].parameters for name in names) == pytest.approx(parameters, rel=1e-3)


def test_the_biases_of_sd14_have_their_published_size(sd14: dict[str, TensorEntry]) -> None:
    assert sum(sd14[name].parameters for name in biases(sd14)) == pytest.approx(0.33e6, rel=0.05)


def test_a_selection_is_exactly_the_parameters_of_linear_and_conv_modules(
    sd14: dict[str, TensorEntry],
) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    expected = {
        f"{path}.{name}"
        for path, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        for name, _ in module.named_parameters()
    }
    assert set(select(sd14, "full")) == expected


def test_cross_attention_and_the_rest_part_the_whole(tiny_checkpoint: Path) -> None:
    entries = Checkpoint.open(tiny_checkpoint).weights("unet").entries
    inside, outside = select(entries, "cross-attention"), select(entries, "non-cross-attention")
    assert not set(inside) & set(outside)
    assert sorted(inside + outside) == list(select(entries, "full"))
    assert set(select(entries, "cross-attention-kv")) < set(inside)
    assert set(select(entries, "self-attention")) < set(outside)


def test_an_unknown_selection_is_our_own_fault(tiny_checkpoint: Path) -> None:
    entries = Checkpoint.open(tiny_checkpoint).weights("unet").entries
    with pytest.raises(KeyError):
        select(entries, "everything")
    assert "everything" not in SELECTIONS


@pytest.mark.parametrize("selection", sorted(SELECTIONS))
def test_a_selection_reads_text_alone_where_all_its_tensors_are_of_cross_attention(
    selection: str, sd14: dict[str, TensorEntry]
) -> None:
    assert text_alone(selection) == all("attn2" in name.split(".") for name in select(sd14, selection))
