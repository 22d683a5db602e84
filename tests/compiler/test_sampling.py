from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from compiler.bank_request import unet_calls
from compiler.checkpoint import Checkpoint
from compiler.conditioning import encode, encode_unconditional
from compiler.sampling import Sampled, Step, load_scheduler, sample
from compiler.seeds import gaussian, generator
from compiler.text import TextEncoder
from compiler.unet import build_unet
from editspec.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PROMPTS = ("a star", "a photo of a red moon")


def _run(checkpoint: Checkpoint, scheduler: Any, steps: int = 5, **options: Any) -> Sampled:
    text = TextEncoder.from_checkpoint(checkpoint)
    return sample(
        build_unet(checkpoint),
        scheduler,
        torch.stack([gaussian((4, 8, 8), 3, prompt) for prompt in PROMPTS]),
        encode_unconditional(text, checkpoint),
        encode(text, PROMPTS, checkpoint),
        steps=steps,
        guidance_scale=4.0,
        generators=[generator(3, prompt, "scheduler") for prompt in PROMPTS],
        **options,
    )


def _stock(folder: Path, scheduler: Any, pipeline_class: Any, steps: int = 5) -> torch.Tensor:
    pipeline = pipeline_class.from_pretrained(folder, local_files_only=True)
    pipeline.scheduler = type(scheduler).from_config(scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents: torch.Tensor = pipeline(
        list(PROMPTS),
        latents=torch.stack([gaussian((4, 8, 8), 3, prompt) for prompt in PROMPTS]),
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=[generator(3, prompt, "scheduler") for prompt in PROMPTS],
        output_type="latent",
    ).images
    return latents


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
     "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"],
)  # fmt: skip
def test_the_loop_ends_where_the_stock_pipeline_ends(
    tiny_checkpoint: Path, name: str, prediction: str
) -> None:
    scheduler = getattr(diffusers, name)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    ours = _run(Checkpoint.open(tiny_checkpoint), scheduler).latents
    theirs = _stock(tiny_checkpoint, scheduler, diffusers.StableDiffusionPipeline)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_an_sdxl_base_is_sampled_with_its_sizes_and_pooled_text(tiny_checkpoint_sdxl: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint_sdxl)
    scheduler = load_scheduler(checkpoint)
    theirs = _stock(tiny_checkpoint_sdxl, scheduler, diffusers.StableDiffusionXLPipeline)
    assert torch.allclose(_run(checkpoint, scheduler).latents, theirs, rtol=1e-4, atol=1e-4)


def test_the_same_call_gives_the_same_bits(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    scheduler = diffusers.EulerAncestralDiscreteScheduler()  # draws noise at every step
    first, again = _run(checkpoint, scheduler).latents, _run(checkpoint, scheduler).latents
    assert torch.equal(first, again)


def test_the_observer_sees_every_step_and_evals_are_counted(tiny_checkpoint: Path) -> None:
    seen: list[Step] = []
    checkpoint = Checkpoint.open(tiny_checkpoint)
    scheduler = load_scheduler(checkpoint)
    done = _run(checkpoint, scheduler, steps=5, observe=seen.append)
    assert [step.index for step in seen] == [0, 1, 2, 3, 4]
    assert done.evals == 2 * 2 * 5
    assert torch.equal(seen[0].model_input[0], gaussian((4, 8, 8), 3, PROMPTS[0]))
    assert all(step.uncond.shape == step.cond.shape == (2, 4, 8, 8) for step in seen)


def _schedulers() -> list[Any]:
    found = []
    for name in ("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "TCD",
                 "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "LCM",
                 "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver"):  # fmt: skip
        kind = getattr(diffusers, name + "Scheduler")
        found.append(kind())
        if "use_karras_sigmas" in inspect.signature(kind).parameters:
            found.append(kind(use_karras_sigmas=True))
    return [*found, diffusers.PNDMScheduler(skip_prk_steps=True)]


@pytest.mark.parametrize("scheduler", _schedulers(), ids=lambda scheduler: type(scheduler).__name__)
def test_planned_calls_are_those_of_the_scheduler(scheduler: Any) -> None:
    for steps in (4, 25, 50):
        scheduler.set_timesteps(steps)
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        assert unet_calls(config, steps) == len(scheduler.timesteps), steps


def test_a_scheduler_that_diffusers_lacks_is_refused(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    for name in ("HomemadeScheduler", "FlowMatchEulerDiscreteScheduler", "os"):
        monkeypatch.setitem(checkpoint.config("scheduler"), "_class_name", name)
        with pytest.raises(InputError, match="scheduler"):
            load_scheduler(checkpoint)
