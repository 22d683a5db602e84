"""Checkpoints of full size with random weights: true names, shapes and configurations, nothing fetched.

The architecture is instantiated on the meta device, which costs no memory, and gives names and shapes; the
weights are random fp16 numbers written as a stream. The vocabulary is synthetic: 49,408 entries as in CLIP,
whose words are made of syllables and are one token each (`words`).

Usage: python benchmarks/full_size.py FOLDER [--family sd1|sd2|sdxl]
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 2**22  # elements written at once
CLIP_VOCABULARY = 49408

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.42.1",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}

#: What differs from the defaults of diffusers' UNet2DConditionModel, whose defaults are nearly SD 1.4.
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}

VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
}

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L |= {"projection_dim": 768}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_H |= {"projection_dim": 512}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_G |= {"projection_dim": 1280}
TEXT_ENCODERS = {"sd1": [CLIP_L], "sd2": [CLIP_H], "sdxl": [CLIP_L, CLIP_G]}


def full_size_checkpoint(path: Path | str, family: str = "sd1", *, seed: int = 0) -> Path:
    """Write a loadable diffusers folder of the family's full size in fp16 (sd1: 2.1 GB); returns the folder.

    The weights are normal noise scaled by fan-in, so activations stay finite; norm layers are the identity.
    Same seed, same bytes. `path` must not exist.
    """
    folder = Path(path)
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    parts = {"unet": _unet(family), "vae": _vae()}
    for name, model in parts.items():
        model.save_config(folder / name)
        write_random(folder / name / "diffusion_pytorch_model.safetensors", _shapes(model), random)
    for number, sizes in enumerate(TEXT_ENCODERS[family]):
        suffix = "" if number == 0 else "_2"
        _write_text_encoder(folder / f"text_encoder{suffix}", sizes, random, projection=number > 0)
        _write_tokenizer(folder / f"tokenizer{suffix}")
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", _model_index(family))
    return folder


def words(count: int) -> list[str]:
    """`count` words of the synthetic vocabulary, the same ones every time, each a single token."""
    complete = [token.removesuffix("</w>") for token in _tokens() if token.endswith("</w>")]
    return [word for word in complete if len(word) == 6][:count]


def write_random(path: Path, shapes: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    """A safetensors file of random fp16 tensors, in pieces; `position_ids` are counted, as in CLIP."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in sorted(shapes.items()):
        counted = name.endswith("position_ids")
        size = int(np.prod(shape)) * (8 if counted else 2)
        header[name] = {
            "dtype": "I64" if counted else "F16",
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # A window of one block of noise, scaled for each tensor: drawing 1e9 normal numbers takes a minute.
    noise = random.standard_normal(2 * CHUNK, dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in sorted(shapes.items()):
            if name.endswith("position_ids"):
                file.write(np.arange(shape[-1], dtype=np.int64).tobytes())
                continue
            for piece in _pieces(name, shape, noise, shift=int(random.integers(CHUNK))):
                file.write(memoryview(piece).cast("B"))


def _pieces(name: str, shape: tuple[int, ...], noise: Any, shift: int) -> Iterable[Any]:
    count = int(np.prod(shape))
    if len(shape) == 1:
        yield np.full(count, 1.0 if name.endswith("weight") else 0.0, dtype=np.float16)
        return
    fan_in = int(np.prod(shape[1:]))
    scale = 0.02 if "embedding" in name and "time" not in name else fan_in**-0.5
    half = (noise[shift : shift + min(count, CHUNK)] * np.float32(scale)).astype(np.float16)
    for start in range(0, count, CHUNK):
        yield half[: min(CHUNK, count - start)]


def _unet(family: str) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[family])


def _vae() -> Any:
    import torch
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(**VAE)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _write_text_encoder(
    folder: Path, sizes: dict[str, int], random: np.random.Generator, *, projection: bool
) -> None:
    """CLIP's text encoder under the names in which Stable Diffusion is published (`text_model.`)."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.embeddings.token_embedding.weight": (CLIP_VOCABULARY, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
    }
    for layer in range(sizes["num_hidden_layers"]):
        stem = f"text_model.encoder.layers.{layer}"
        maps: dict[str, tuple[int, ...]] = {"layer_norm1": (width,), "layer_norm2": (width,)}
        maps |= {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        maps |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for part, shape in maps.items():
            shapes[f"{stem}.{part}.weight"] = shape
            shapes[f"{stem}.{part}.bias"] = shape[:1]
    if projection:
        shapes["text_projection.weight"] = (sizes["projection_dim"], width)
    kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    config = {
        "architectures": [kind],
        "bos_token_id": CLIP_VOCABULARY - 2,
        "eos_token_id": CLIP_VOCABULARY - 1,
        "hidden_act": "quick_gelu" if width == CLIP_L["hidden_size"] else "gelu",
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "pad_token_id": CLIP_VOCABULARY - 1,
        "vocab_size": CLIP_VOCABULARY,
        **sizes,
    }
    _write_json(folder / "config.json", config)
    write_random(folder / "model.safetensors", shapes, random)


def _write_tokenizer(folder: Path) -> None:
    from transformers import CLIPTokenizer

    vocabulary = {token: number for number, token in enumerate(_tokens())}
    CLIPTokenizer(vocabulary, _merges(), model_max_length=77).save_pretrained(folder)


def _tokens() -> list[str]:
    letters = _byte_letters()
    merged = ["".join(pair) for pair in _merges()]
    return [
        *letters,
        *(letter + "</w>" for letter in letters),
        *merged,
        "<|startoftext|>",
        "<|endoftext|>",
    ]


def _merges() -> list[tuple[str, str]]:
    """Byte-pair merges that build words of two and three syllables, as many as fill CLIP's vocabulary.

    Letters merge to syllables first, then two syllables in front, then the last one: in this order no
    earlier merge can break up a later word.
    """
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnpqrstvwxz", "aeiou")]
    fronts = list(itertools.product(syllables, syllables))
    merges = [(syllable[0], syllable[1] + end) for end in ("", "</w>") for syllable in syllables]
    merges += fronts
    merges += [(first, last + "</w>") for first, last in fronts]
    room = CLIP_VOCABULARY - 2 - 2 * 256 - len(merges)
    thirds = ((first + second, last + "</w>") for last in syllables for first, second in fronts)
    return merges + list(itertools.islice(thirds, room))


def _byte_letters() -> list[str]:
    """The printable letter that stands for each of the 256 bytes, in CLIP's order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + number) for number in range(len(hidden))]


def _model_index(family: str) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family == "sdxl":
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    else:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
        index["requires_safety_checker"] = False
    return index


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Build one where the user says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=sorted(UNETS), default="sd1")
    arguments = parser.parse_args()
    print(full_size_checkpoint(arguments.folder, arguments.family))


if __name__ == "__main__":
    main()
