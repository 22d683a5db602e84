from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from editspec import InputError
from exporters.ddim import Ddim

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@pytest.mark.parametrize(
    "config",
    [
        STABLE | {"set_alpha_to_one": False, "steps_offset": 1},
        STABLE | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        STABLE | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "steps_offset": 1},
        STABLE | {"prediction_type": "sample", "timestep_spacing": "linspace"},
        STABLE | {"clip_sample": True, "clip_sample_range": 0.7},
        STABLE | {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
        {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
        {"clip_sample": False, "num_train_timesteps": 400},
    ],
)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_every_step_is_the_one_of_diffusers(config: dict[str, Any], steps: int) -> None:
    theirs = DDIMScheduler.from_config(config)
    theirs.set_timesteps(steps)
    ours = Ddim.from_config(config, steps)
    assert list(ours.timesteps) == theirs.timesteps.tolist()
    latents = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for timestep in ours.timesteps:
        predicted = 0.9 * latents + 0.1
        expected = theirs.step(predicted, timestep, latents).prev_sample
        found = ours.step(predicted.numpy(), timestep, latents.numpy())
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=2e-5)
        latents = expected.clamp(-5, 5)


def test_a_schedule_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="noise schedule 'sigmoid'"):
        Ddim.from_config({"beta_schedule": "sigmoid"}, 10)
    with pytest.raises(InputError, match="2000 is not between 1 and 1000"):
        Ddim.from_config(STABLE, 2000)
