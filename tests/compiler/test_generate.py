from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.generate import Draw, Sampler, Sampling, generate, variant_of
from compiler.progress import Silent, Task
from editspec import InputError

Copy = Callable[[Path], Path]

SHORT = Sampling(guidance_scale=3.0, steps=2)


@pytest.fixture(scope="module")
def sampler(tiny_checkpoint: Path) -> Sampler:
    return Sampler(Checkpoint.open(tiny_checkpoint))


def test_pictures_are_bytes_of_the_models_own_size(sampler: Sampler) -> None:
    images = sampler.images([Draw("a star", 1), Draw("a moon", 2)], SHORT)
    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == np.uint8


def test_a_picture_depends_on_its_draw_and_not_on_its_place_in_the_batch(sampler: Sampler) -> None:
    draws = [Draw("a star", 1), Draw("a moon", 2), Draw("a star", 3), Draw("a red circle", 4)]
    forward = sampler.images(draws, SHORT, batch=4)
    backward = sampler.images(draws[::-1], SHORT, batch=4)
    assert np.array_equal(forward, backward[::-1])
    assert np.array_equal(sampler.images(draws[2:3], SHORT, batch=4)[0], forward[2])


def test_batches_of_another_size_give_the_same_picture_up_to_rounding(sampler: Sampler) -> None:
    draws = [Draw("a star", 1), Draw("a moon", 2), Draw("a star", 3)]
    four, one = sampler.images(draws, SHORT, batch=4), sampler.images(draws, SHORT, batch=1)
    assert np.abs(four.astype(int) - one.astype(int)).max() <= 1


def test_prompt_and_seed_both_matter(sampler: Sampler) -> None:
    first, seed, prompt = sampler.images([Draw("a star", 1), Draw("a star", 2), Draw("a moon", 1)], SHORT)
    assert not np.array_equal(first, seed)
    assert not np.array_equal(first, prompt)


def test_the_function_draws_what_plain_diffusers_draws(tiny_checkpoint: Path) -> None:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    ours = generate(tiny_checkpoint, [Draw("a star", 9)], guidance_scale=3.0, steps=2, batch=1)
    with warnings.catch_warnings(action="ignore"):
        stock = StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    noise = torch.Generator("cpu").manual_seed(9)
    theirs = stock("a star", generator=noise, guidance_scale=3.0, num_inference_steps=2).images[0]
    assert np.array_equal(ours[0], np.asarray(theirs))


def test_half_and_xl_checkpoints_draw_too(tiny_checkpoint_fp16: Path, tiny_checkpoint_sdxl: Path) -> None:
    for folder in (tiny_checkpoint_fp16, tiny_checkpoint_sdxl):
        assert generate(folder, [Draw("a star", 1)], 3.0, 1).shape[0] == 1


def test_cached_batches_are_not_drawn_again_and_others_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    checkpoint = Checkpoint.open(tiny_checkpoint)
    draws = [Draw("a star", seed) for seed in range(4)]
    first = Sampler(checkpoint, cache=cache).images(draws, SHORT, batch=2)
    again = Sampler(checkpoint, cache=cache)
    assert np.array_equal(again.images(draws, SHORT, batch=2), first)
    assert "pipeline" not in vars(again)  # nothing was loaded
    again.images([*draws, Draw("a moon", 1)], SHORT, batch=2)
    assert "pipeline" in vars(again)


def test_another_checkpoint_never_gets_the_cached_pictures(
    tiny_checkpoint: Path, tiny_checkpoint_fp16: Path, tmp_path: Path
) -> None:
    cache = StageCache(tmp_path / "cache")
    full, half = (
        Sampler(Checkpoint.open(folder), cache=cache).images([Draw("a star", 1)], SHORT, batch=1)
        for folder in (tiny_checkpoint, tiny_checkpoint_fp16)
    )
    assert not np.array_equal(full, half)


def test_a_prompt_over_the_token_window_is_refused(sampler: Sampler) -> None:
    with pytest.raises(InputError, match="18 tokens; this model reads 16"):
        sampler.images([Draw(" ".join(["star"] * 16), 1)], SHORT)


def test_the_batch_shrinks_as_pictures_grow(sampler: Sampler, tiny_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_checkpoint)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 64}))
    assert sampler.batch == 32
    assert Sampler(Checkpoint.open(folder)).batch == 1


def test_the_variant_of_a_folder_is_read_from_its_names(tiny_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_checkpoint)
    assert variant_of(folder) is None
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.move(plain, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert variant_of(folder) == "fp16"
    plain.with_name("diffusion_pytorch_model.safetensors.index.fp16.json").touch()
    plain.with_name("diffusion_pytorch_model.fp16.safetensors").unlink()
    assert variant_of(folder) == "fp16"


def test_weights_that_do_not_fit_their_config_are_bad_input(tiny_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_checkpoint)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [16, 16, 16, 16]}))
    with pytest.raises(InputError, match="diffusers cannot load it"):
        generate(folder, [Draw("a star", 1)], 3.0, 1)


def test_progress_counts_pictures(sampler: Sampler) -> None:
    seen = []

    class Counting(Silent):
        @contextmanager
        def task(self, name: str, total: float | None = None) -> Iterator[Task]:
            seen.append((name, total))
            with super().task(name, total) as task:
                yield task

    sampler.images([Draw("a star", 1)] * 3, SHORT, progress=Counting())
    assert seen == [("generate", 3)]


def test_naming_draws_loads_no_torch() -> None:
    program = "import sys, compiler.generate; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_many_pictures_lie_in_a_file_and_are_the_same(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = [Draw("a star", seed) for seed in range(3)]
    in_memory = sampler.images(draws, Sampling(steps=2), batch=2)
    monkeypatch.setattr("compiler.generate.MOST_IN_MEMORY", 10)
    on_disk = sampler.images(draws, Sampling(steps=2), batch=2)
    assert isinstance(on_disk, np.memmap)
    assert not isinstance(in_memory, np.memmap)
    assert np.array_equal(on_disk, in_memory)
