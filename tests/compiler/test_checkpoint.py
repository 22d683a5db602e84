from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compiler.checkpoint import Checkpoint
from editspec.errors import InputError

Copy = Callable[[Path], Path]

UNET = Path("unet", "diffusion_pytorch_model.safetensors")


def refusal(root: Path, variant: str | None = None) -> str:
    """The message with which a base is refused."""
    with pytest.raises(InputError) as caught:
        Checkpoint.open(root, variant)
    return str(caught.value)


def change(path: Path, **values: Any) -> None:
    document = json.loads(path.read_text("utf-8"))
    document.update(values)
    path.write_text(json.dumps(document), "utf-8")


def shard(
    root: Path, count: int = 2, *, index: str = "diffusion_pytorch_model.safetensors.index.json"
) -> Path:
    """Cut the U-Net's weights into shards; returns the index."""
    tensors = load_file(root / UNET)
    (root / UNET).unlink()
    weight_map: dict[str, str] = {}
    for number in range(count):
        name = f"diffusion_pytorch_model-{number + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::count]}
        save_file(part, root / "unet" / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    path = root / "unet" / index
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")
    return path


def test_the_family_is_read_from_the_configurations(
    tiny_checkpoint: Path, tiny_checkpoint_sdxl: Path, copy_of: Copy
) -> None:
    second = copy_of(tiny_checkpoint)
    change(second / "unet" / "config.json", use_linear_projection=True)
    assert Checkpoint.open(tiny_checkpoint).family == "sd1"
    assert Checkpoint.open(second).family == "sd2"
    assert Checkpoint.open(tiny_checkpoint_sdxl).family == "sdxl"


def test_a_checkpoint_tells_its_tensors_without_loading_any(tiny_checkpoint_fp16: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint_fp16)
    weights = checkpoint.weights("unet")
    expected = load_file(tiny_checkpoint_fp16 / UNET)
    assert weights.entries.keys() == expected.keys()
    assert all(weights.entries[name].shape == tuple(tensor.shape) for name, tensor in expected.items())
    assert weights.parameters == sum(tensor.numel() for tensor in expected.values())
    name = min(expected)
    assert weights.read(name).dtype == torch.float16
    assert weights.read(name).equal(expected[name])
    assert checkpoint.config("unet")["in_channels"] == 4
    assert checkpoint.weighted == ("text_encoder", "unet", "vae")


def test_opening_a_checkpoint_imports_no_tensor_library(tiny_checkpoint: Path) -> None:
    code = (
        "import sys; from compiler.checkpoint import Checkpoint; from compiler.base import open_base\n"
        f"c = Checkpoint.open({str(tiny_checkpoint)!r}); c.digest; c.weights('unet')\n"
        "heavy = ('torch', 'numpy', 'diffusers', 'transformers', 'huggingface_hub')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_it_needs_and_nothing_else_is_part_of_it(tiny_checkpoint: Path, copy_of: Copy) -> None:
    root = copy_of(tiny_checkpoint)
    before = Checkpoint.open(root).files()
    for stray in ("notes.txt", "unet/diffusion_pytorch_model.bin", "unet/other.safetensors", "v1-4.ckpt"):
        (root / stray).write_text("stray")
    checkpoint = Checkpoint.open(root)
    assert checkpoint.files() == before
    assert "model_index.json" in before
    assert str(UNET) in before
    assert list(before) == sorted(before)


def test_a_licence_is_part_of_it(tiny_checkpoint: Path, copy_of: Copy) -> None:
    root = copy_of(tiny_checkpoint)
    (root / "LICENSE.md").write_text("be kind")
    assert "LICENSE.md" in Checkpoint.open(root).files()


def test_the_digest_follows_every_byte_and_no_path(tiny_checkpoint: Path, copy_of: Copy) -> None:
    root = copy_of(tiny_checkpoint)
    digest = Checkpoint.open(root).digest
    assert digest == Checkpoint.open(tiny_checkpoint).digest
    for name in Checkpoint.open(root).files():
        damaged = copy_of(tiny_checkpoint)
        content = bytearray((damaged / name).read_bytes())
        content += b" " if name.endswith(".json") else b""
        content[-1] ^= 0 if name.endswith(".json") else 1
        (damaged / name).write_bytes(content)
        assert Checkpoint.open(damaged).digest != digest, name


def test_a_write_that_restores_size_and_time_still_changes_the_digest(
    tiny_checkpoint: Path, copy_of: Copy
) -> None:
    root = copy_of(tiny_checkpoint)
    digest = Checkpoint.open(root).digest
    assert Checkpoint.open(root).digest == digest
    status = (root / UNET).stat()
    with (root / UNET).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(root / UNET, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Checkpoint.open(root).digest != digest


def test_a_known_digest_is_not_computed_again(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compiler.digests

    monkeypatch.setattr(compiler.digests, "SETTLED_SECONDS", -1.0)  # do not wait for the clock
    digests = Checkpoint.open(tiny_checkpoint).digests()
    monkeypatch.setattr(compiler.digests, "_sha256", None)
    assert Checkpoint.open(tiny_checkpoint).digests() == digests


def test_a_cache_that_cannot_be_written_costs_only_time(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = Checkpoint.open(tiny_checkpoint).digest
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "file" / "inside"))
    assert Checkpoint.open(tiny_checkpoint).digest == digest


def test_a_variant_is_taken_and_the_rest_falls_back_to_plain_files(
    tiny_checkpoint: Path, tiny_checkpoint_fp16: Path, copy_of: Copy
) -> None:
    root = copy_of(tiny_checkpoint)
    shutil.copy(tiny_checkpoint_fp16 / UNET, root / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    checkpoint = Checkpoint.open(root, "fp16")
    assert checkpoint.weights("unet").entries["conv_in.weight"].dtype == "F16"
    assert checkpoint.weights("vae").files[0].name == "diffusion_pytorch_model.safetensors"
    assert Checkpoint.open(root).weights("unet").entries["conv_in.weight"].dtype == "F32"
    assert checkpoint.digest != Checkpoint.open(root).digest


@pytest.mark.parametrize(
    ("index", "variant"),
    [
        ("diffusion_pytorch_model.safetensors.index.json", None),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", "fp16"),
    ],
)
def test_shards_are_read_as_one(
    tiny_checkpoint: Path, copy_of: Copy, index: str, variant: str | None
) -> None:
    root = copy_of(tiny_checkpoint)
    expected = load_file(root / UNET)
    shard(root, 3, index=index)
    weights = Checkpoint.open(root, variant).weights("unet")
    assert len(weights.files) == 3
    assert weights.entries.keys() == expected.keys()
    assert all(weights.read(name).equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "place",
    ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", "./x.safetensors",
     "..safetensors", "x\0.safetensors", "x.bin", "", 7, None],
)  # fmt: skip
def test_an_index_that_points_anywhere_else_is_refused(
    tiny_checkpoint: Path, copy_of: Copy, place: Any
) -> None:
    root = copy_of(tiny_checkpoint)
    shutil.copy(root / UNET, root / "outside.safetensors")
    index = shard(root)
    document = json.loads(index.read_text())
    document["weight_map"]["conv_in.weight"] = place
    index.write_text(json.dumps(document))
    message = refusal(root)
    assert "conv_in.weight" in message
    assert "own folder" in message


def test_a_tensor_smuggled_into_another_shard_is_refused(tiny_checkpoint: Path, copy_of: Copy) -> None:
    root = copy_of(tiny_checkpoint)
    index = shard(root)
    weight_map = json.loads(index.read_text())["weight_map"]
    victim = "conv_in.weight"
    other = next(name for name in set(weight_map.values()) if name != weight_map[victim])
    tensors = load_file(root / "unet" / other)
    tensors[victim] = torch.zeros(1)
    save_file(tensors, root / "unet" / other)
    message = refusal(root)
    assert victim in message
    assert other in message


def test_index_and_shards_must_agree(tiny_checkpoint: Path, copy_of: Copy) -> None:
    root = copy_of(tiny_checkpoint)
    index = shard(root)
    honest = json.loads(index.read_text())
    shards = sorted(set(honest["weight_map"].values()))

    honest["weight_map"]["ghost.weight"] = shards[0]
    index.write_text(json.dumps(honest))
    assert "ghost.weight" in refusal(root)
    del honest["weight_map"]["ghost.weight"], honest["weight_map"]["conv_in.weight"]
    index.write_text(json.dumps(honest))
    assert "does not list the tensor conv_in.weight" in refusal(root)
    index.write_text(json.dumps({"weight_map": {}}))
    assert "no weight_map" in refusal(root)
    index.write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    assert "occurs twice" in refusal(root)
    (root / "unet" / shards[1]).unlink()
    index.write_text(json.dumps({"weight_map": {"a": shards[1]}}))
    assert shards[1] in refusal(root)


def test_an_index_beside_a_whole_file_is_refused(tiny_checkpoint: Path, copy_of: Copy) -> None:
    root = copy_of(tiny_checkpoint)
    whole = (root / UNET).read_bytes()
    shard(root)
    (root / UNET).write_bytes(whole)
    assert "holds both" in refusal(root)


def test_damaged_weights_of_any_component_are_refused(tiny_checkpoint: Path, copy_of: Copy) -> None:
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        root = copy_of(tiny_checkpoint)
        path = root / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert "cut short" in refusal(root)
        path.unlink()
        assert f"has no {path.name}" in refusal(root)


def test_pickles_are_refused_wherever_they_would_be_read(tiny_checkpoint: Path, copy_of: Copy) -> None:
    root = copy_of(tiny_checkpoint)
    (root / UNET).rename(root / "unet" / "diffusion_pytorch_model.bin")
    assert "pickle" in refusal(root)
    for name in ("model.ckpt", "model.pt", "model.bin", "model.pkl", "model.pth"):
        (root / name).write_bytes(b"\x80\x04.")
        assert "pickle" in refusal(root / name)
    (root / "model_index.json").unlink()
    assert "pickle" in refusal(root)


def test_code_in_a_checkpoint_is_refused(tiny_checkpoint: Path, copy_of: Copy) -> None:
    for place in ("pipeline.py", "unet/modeling.py", "tokenizer/fast.so"):
        root = copy_of(tiny_checkpoint)
        (root / place).touch()
        assert "is code" in refusal(root)
    root = copy_of(tiny_checkpoint)
    change(root / "text_encoder" / "config.json", auto_map={"AutoModel": "x.Y"})
    assert "auto_map" in refusal(root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unet": ["os", "system"]}, "makes unet a os.system"),
        ({"unet": ["my_unet", "UNet2DConditionModel"]}, "my_unet"),
        ({"vae": ["diffusers", "AutoencoderOfMine"]}, "AutoencoderOfMine"),
        ({"helper": ["diffusers", "UNet2DConditionModel"]}, "helper"),
        ({"unet": ["diffusers", 7]}, "not by a library and a class"),
        ({"unet": [None, None]}, "lacks unet"),
        ({"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ({"_class_name": ["pipeline", "Mine"]}, "Mine"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "lacks text_encoder_2"),
    ],
)
def test_a_pipeline_that_is_not_stock_stable_diffusion_is_refused(
    tiny_checkpoint: Path, copy_of: Copy, values: dict[str, Any], message: str
) -> None:
    root = copy_of(tiny_checkpoint)
    change(root / "model_index.json", **values)
    assert message in refusal(root)


@pytest.mark.parametrize(
    ("component", "values", "message"),
    [
        ("unet", {"in_channels": 9}, "from 9 to 4"),
        ("unet", {"cross_attention_dim": 99}, "width 99"),
        ("unet", {"cross_attention_dim": None}, "width None"),
        ("unet", {"in_channels": "4"}, "in_channels"),
        ("unet", {"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel"),
        ("vae", {"latent_channels": True}, "latent_channels"),
        ("text_encoder", {"hidden_size": 48}, "[48]"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    tiny_checkpoint: Path, copy_of: Copy, component: str, values: dict[str, Any], message: str
) -> None:
    root = copy_of(tiny_checkpoint)
    change(root / component / "config.json", **values)
    assert message in refusal(root)


def test_weights_against_their_configuration_are_refused(tiny_checkpoint: Path, copy_of: Copy) -> None:
    root = copy_of(tiny_checkpoint)
    tensors = load_file(root / UNET)
    name = next(name for name in sorted(tensors) if name.endswith("attn2.to_k.weight"))
    save_file({**tensors, name: torch.zeros(32, 7)}, root / UNET)
    assert "against its config.json" in refusal(root)
    save_file({**tensors, name: torch.zeros(32, 32, dtype=torch.int8)}, root / UNET)
    assert "holds no edit" in refusal(root)
    save_file({"conv_in.weight": torch.zeros(1)}, root / UNET)
    assert "no cross-attention" in refusal(root)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "\ufeff{}", "[" * 100_000]
)
def test_a_broken_configuration_is_refused(tiny_checkpoint: Path, copy_of: Copy, content: str) -> None:
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        root = copy_of(tiny_checkpoint)
        (root / name).write_text(content, "utf-8")
        assert name in refusal(root)


def test_missing_parts_are_named(tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "model_index.json" in refusal(tmp_path / "empty")
    (tmp_path / "a.safetensors").touch()
    assert "is a file" in refusal(tmp_path / "a.safetensors")
    for name in ("unet", "tokenizer", "scheduler/scheduler_config.json"):
        root = copy_of(tiny_checkpoint)
        (shutil.rmtree if (root / name).is_dir() else os.unlink)(root / name)
        assert name in refusal(root)


def test_a_variant_that_is_not_there_or_no_word_is_refused(tiny_checkpoint: Path, copy_of: Copy) -> None:
    assert "'../x'" in refusal(tiny_checkpoint, "../x")
    root = copy_of(tiny_checkpoint)
    (root / UNET).rename(root / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert "variants there: fp16" in refusal(root)


def test_a_link_out_of_the_checkpoint_is_refused(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    root = copy_of(tiny_checkpoint)
    (root / "tokenizer" / "special_tokens_map.json").symlink_to(secret)
    assert "is a link that leaves the checkpoint" in refusal(root)


def test_links_into_the_hub_cache_of_the_same_repository_are_its_own(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models--org--name"
    root = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(tiny_checkpoint.rglob("*")) if path.is_file()):
        place = root / path.relative_to(tiny_checkpoint)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repository / "blobs" / str(number))
        place.symlink_to(Path(os.path.relpath(repository / "blobs" / str(number), place.parent)))
    assert Checkpoint.open(root).digest == Checkpoint.open(tiny_checkpoint).digest
