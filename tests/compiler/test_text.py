"""Text embeddings equal the stock pipelines', and cost only the positions that are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from compiler.checkpoint import Checkpoint
from compiler.text import TextEncoder
from editspec.errors import InputError

PROMPTS = [
    "a photo of a star",
    "",
    "Flame",
    "a drawing of a burning house in the style of an unknownword",
    "red star, blue moon, green ring, black cross, white heart, small tree, big house, yellow arrow",
]


@pytest.fixture(scope="module")
def text(tiny_checkpoint: Path) -> TextEncoder:
    return TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint))


@pytest.fixture(scope="module")
def text_sdxl(tiny_checkpoint_sdxl: Path) -> TextEncoder:
    return TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint_sdxl))


@torch.no_grad()
def test_padded_embeddings_equal_the_stock_pipelines(text: TextEncoder, tiny_checkpoint: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_checkpoint)
    stock, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    torch.testing.assert_close(text.encode(PROMPTS), stock)
    torch.testing.assert_close(text.unconditional(), negative[:1])
    assert text.encode_pooled(PROMPTS) is None


@torch.no_grad()
def test_sdxl_concatenates_the_penultimate_layers_of_both_encoders(
    text_sdxl: TextEncoder, tiny_checkpoint_sdxl: Path
) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_checkpoint_sdxl)
    stock, negative, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu")
    torch.testing.assert_close(text_sdxl.encode(PROMPTS), stock)
    torch.testing.assert_close(text_sdxl.unconditional(), negative[:1])
    torch.testing.assert_close(text_sdxl.encode_pooled(PROMPTS), pooled)
    assert text_sdxl.width == stock.shape[-1]


@pytest.mark.parametrize("family", ["text", "text_sdxl"])
def test_real_tokens_do_not_depend_on_the_padding_after_them(
    family: str, request: pytest.FixtureRequest
) -> None:
    encoder: TextEncoder = request.getfixturevalue(family)
    padded = encoder.encode(PROMPTS)
    for row, tokens, ids in zip(
        padded, encoder.encode_tokens(PROMPTS), encoder.token_ids(PROMPTS), strict=True
    ):
        assert len(tokens) == len(ids)
        torch.testing.assert_close(tokens, row[: len(ids)], atol=2e-6, rtol=1e-5)


def test_an_embedding_does_not_depend_on_what_was_encoded_with_it(tiny_checkpoint: Path) -> None:
    alone = TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint)).encode(PROMPTS[:1])
    together = TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint)).encode(PROMPTS)
    assert torch.equal(alone[0], together[0])


def test_the_order_of_prompts_is_kept_and_repeats_are_allowed(text: TextEncoder) -> None:
    rows = text.encode_tokens(["a red star", "star", "a red star"])
    assert [len(row) for row in rows] == [5, 3, 5]
    assert torch.equal(rows[0], rows[2])
    assert text.encode([]).shape == (0, text.window, text.width)
    assert text.encode_tokens([]) == []


def test_a_long_prompt_is_cut_at_the_window_as_in_sampling(text: TextEncoder) -> None:
    assert text.token_count(PROMPTS[-1]) > text.window
    assert len(text.token_ids(PROMPTS[-1:])[0]) == text.window
    assert text.token_count("a star") == 4


@pytest.mark.parametrize(
    ("prompt", "concept", "span"),
    [
        ("a photo of a star", "star", (5, 6)),
        ("a photo of a  Star", "star", (5, 6)),
        ("a picture of a picture", "picture", (5, 6)),
        ("a star, red", "star", (2, 3)),
        ("red star drawing", "red  star", (1, 3)),
    ],
)
def test_the_span_of_a_concept_is_where_its_tokens_are(
    text: TextEncoder, prompt: str, concept: str, span: tuple[int, int]
) -> None:
    assert text.subject_span(prompt, concept) == span
    tokens = text.tokenizer.convert_ids_to_tokens(text.token_ids([prompt])[0][span[0] : span[1]])
    assert " ".join(token.removesuffix("</w>") for token in tokens) == " ".join(concept.split())


@pytest.mark.parametrize("prompt", ["a sixstar", "a moon", ""])
def test_a_prompt_without_the_concept_has_no_span(text: TextEncoder, prompt: str) -> None:
    with pytest.raises(InputError, match="does not contain the concept 'star'"):
        text.subject_span(prompt, "star")


def test_a_tokenizer_with_a_wider_window_than_the_encoder_is_refused(
    tiny_checkpoint: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(tiny_checkpoint)
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}))
    with pytest.raises(InputError, match="window of 77 tokens"):
        TextEncoder.from_checkpoint(Checkpoint.open(folder))


def test_missing_text_encoder_weights_are_refused_not_made_up(
    tiny_checkpoint: Path, copy_of: Callable[[Path], Path]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(tiny_checkpoint)
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "mlp.fc1.weight" in name))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 weights in the shapes"):
        TextEncoder.from_checkpoint(Checkpoint.open(folder))


def test_padding_is_hidden_from_an_encoder_that_asks_for_it(
    tiny_checkpoint: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(tiny_checkpoint)
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_attention_mask": True}))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        stock, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    text = TextEncoder.from_checkpoint(Checkpoint.open(folder))
    torch.testing.assert_close(text.encode(PROMPTS), stock)


def test_an_unknown_activation_is_refused(tiny_checkpoint: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(tiny_checkpoint)
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))
    with pytest.raises(InputError, match="activation 'relu'"):
        TextEncoder.from_checkpoint(Checkpoint.open(folder))


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("eos", [2, None])
def test_the_encoder_equals_transformers_whatever_its_configuration(
    tiny_checkpoint_sdxl: Path, copy_of: Callable[[Path], Path], activation: str, eos: int | None
) -> None:
    folder = copy_of(tiny_checkpoint_sdxl)
    for name in ("text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        config = json.loads(path.read_text()) | {"hidden_act": activation, "layer_norm_eps": 1e-3}
        path.write_text(json.dumps(config | ({"eos_token_id": eos} if eos else {})))
    stock, _, pooled, _ = StableDiffusionXLPipeline.from_pretrained(folder).encode_prompt(
        PROMPTS, device="cpu"
    )
    text = TextEncoder.from_checkpoint(Checkpoint.open(folder))
    torch.testing.assert_close(text.encode(PROMPTS), stock)
    torch.testing.assert_close(text.encode_pooled(PROMPTS), pooled)
