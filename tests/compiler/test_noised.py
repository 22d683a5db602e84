from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compiler.noised import noised_bank
from editspec.errors import InputError

LATENTS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def _scheduler(prediction: str = "epsilon", **changed: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(prediction_type=prediction, **changed)


def _bank(scheduler: Any, **changed: Any) -> Any:
    settings = {"timesteps": 5, "seed": 1, **changed}
    return noised_bank(LATENTS, [0, 1, 1], ("a moon", "a tree"), scheduler, **settings)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_rows_are_what_the_scheduler_itself_makes_of_latent_and_noise(prediction: str) -> None:
    scheduler = _scheduler(prediction)
    bank = _bank(scheduler)
    rows = torch.arange(len(bank))
    x, t, answer = (
        bank.take("model_input", rows),
        bank.take("timestep", rows).long(),
        bank.take("noise", rows),
    )
    latent = LATENTS[bank.column("trajectory")]
    alpha = scheduler.alphas_cumprod[t][:, None, None, None]
    noise = (x - alpha.sqrt() * latent) / (1 - alpha).sqrt()
    torch.testing.assert_close(scheduler.add_noise(latent, noise, t), x)
    wanted = noise if prediction == "epsilon" else scheduler.get_velocity(latent, noise, t)
    torch.testing.assert_close(answer, wanted, atol=1e-4, rtol=1e-3)
    assert abs(float(noise.mean())) < 0.1
    assert 0.9 < float(noise.std()) < 1.1


def test_every_latent_is_noised_at_one_time_of_each_stretch() -> None:
    bank = _bank(_scheduler())
    times = bank.column("timestep").reshape(3, 5)
    assert (times.long() // 200).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert bank.column("prompt").tolist() == [0] * 5 + [1] * 10
    assert bank.prompts == ("a moon", "a tree")


def test_draws_follow_seed_and_names() -> None:
    first, again = _bank(_scheduler()), _bank(_scheduler())
    assert torch.equal(first.column("model_input"), again.column("model_input"))
    for changed in ({"seed": 2}, {"names": ("other",)}):
        assert not torch.equal(
            first.column("model_input"), _bank(_scheduler(), **changed).column("model_input")
        )


def test_a_scheduler_without_a_noise_schedule_is_refused() -> None:
    flow = SimpleNamespace(config={"_class_name": "FlowMatchEulerDiscreteScheduler"})
    with pytest.raises(InputError, match="FlowMatchEuler"):
        _bank(flow)
    with pytest.raises(InputError, match="'sample'"):
        _bank(_scheduler("sample"))
