from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compiler.bank import Bank, load_bank
from compiler.bank_request import BankRequest
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.effects import Effect, effect_of
from compiler.guided_bank import GuidingTeacher
from compiler.guided_request import GuidedRequest, scales_around
from compiler.passes import PassContext
from compiler.progress import Silent
from compiler.sampling import classifier_free_guidance, predict, sample
from compiler.seeds import gaussian, generator
from editspec import Guide, Guided, parse_spec

SEGA = Guide(
    id="a", away_from=(Guided(concept="crack"),), toward=(Guided(concept="moon"),), scale=5.0, warmup=2,
    threshold=0.5, momentum_scale=0.2, momentum_beta=0.4,
)  # fmt: skip
NEGATIVE = Guide(id="b", method="negative-prompt", away_from=(Guided(concept="crack"),))
DOCUMENT = {
    "editspec": 1,
    "name": "test",
    "base": {"path": "tiny"},
    "edits": [{"edit": "guide", "away_from": ["crack"]}],
}


def _request(effect: Effect, trajectories: tuple[int, ...] = (2, 1), steps: int = 4) -> GuidedRequest:
    prompts = ("a house", "a tree")[: len(trajectories)]
    plain = BankRequest(prompts, trajectories, 5, steps=steps, guidance_scale=4.0, strata=steps)
    return GuidedRequest(plain, effect, (4.0, 2.0))


@pytest.fixture
def teacher(tiny_checkpoint: Path) -> GuidingTeacher:
    spec = parse_spec(json.dumps(DOCUMENT))
    base = Checkpoint.open(tiny_checkpoint)
    return GuidingTeacher(PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Silent()))


def test_its_rows_are_the_trajectory_of_the_runtime_original(teacher: GuidingTeacher) -> None:
    bank = teacher.bank(_request(effect_of(NEGATIVE), (1,)))
    seen: list[torch.Tensor] = []

    def negative(step: object) -> torch.Tensor:
        seen.append(step.model_input)  # type: ignore[attr-defined]
        return classifier_free_guidance(step.further[0], step.cond, 4.0)  # type: ignore[attr-defined]

    noise = gaussian((4, 8, 8), 5, "bank", "a house", 0, "noise")[None]
    final = sample(
        teacher.unet, teacher.scheduler, noise, teacher.unconditional, teacher.encode(["a house"]), steps=4,
        guidance_scale=4.0, generators=[generator(0)], further=[teacher.encode(["crack"])], combine=negative,
    )  # fmt: skip
    torch.testing.assert_close(bank.take("model_input", torch.arange(4)), torch.cat(seen))
    torch.testing.assert_close(bank.column("latents"), final.latents)


def test_its_predictions_are_the_bases_and_its_guidance_that_of_the_effect(teacher: GuidingTeacher) -> None:
    bank = teacher.bank(_request(effect_of(NEGATIVE)))
    rows = torch.arange(len(bank))
    prompts = teacher.encode(["a house", "a tree", "crack"])
    read = {"cond": bank.column("prompt"), "negative": torch.full((len(bank),), 2)}
    model_input, timestep = bank.take("model_input", rows), bank.column("timestep")
    with torch.no_grad():
        found = {
            name: predict(teacher.unet, model_input, timestep, prompts.rows(number))
            for name, number in read.items()
        }
    uncond = bank.take("uncond", rows)
    torch.testing.assert_close(bank.take("cond", rows), found["cond"])
    torch.testing.assert_close(bank.take("guidance", rows), found["negative"] - uncond)


def test_nothing_is_guided_before_the_warm_up_ends_and_momentum_is_there_after(
    teacher: GuidingTeacher,
) -> None:
    bank = teacher.bank(_request(effect_of(SEGA)))
    guided = bank.take("guidance", torch.arange(len(bank))).flatten(1).any(1)
    assert torch.equal(guided, bank.column("step") >= 2)


def test_trajectories_take_turns_at_the_guidance_scales(teacher: GuidingTeacher) -> None:
    both = teacher.bank(_request(effect_of(SEGA), (2,)))
    plain = BankRequest(("a house",), (2,), 5, steps=4, guidance_scale=4.0, strata=4)
    high = teacher.bank(GuidedRequest(plain, effect_of(SEGA), (4.0,)))
    low = teacher.bank(GuidedRequest(plain, effect_of(SEGA), (2.0,)))
    latents = both.column("latents")
    torch.testing.assert_close(latents[0], high.column("latents")[0])
    torch.testing.assert_close(latents[1], low.column("latents")[1])
    assert not torch.equal(high.column("latents"), low.column("latents"))


def test_the_evals_are_those_that_were_planned_and_the_bytes_are_the_same_twice(
    teacher: GuidingTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _request(effect_of(SEGA))
    counted = 0
    forward = torch.nn.Module.__call__

    def counting(module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        nonlocal counted
        if type(module).__name__ == "UNet2DConditionModel":
            counted += len(args[0])  # type: ignore[arg-type]
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        teacher._sample(request, folder)
    assert counted == 2 * request.evals(teacher.scheduler.config) == 2 * 3 * 4 * 4
    first, second = ({p.name: p.read_bytes() for p in sorted(f.iterdir())} for f in folders)
    assert first == second
    assert isinstance(load_bank(folders[0]), Bank)


def test_another_effect_is_another_bank() -> None:
    assert _request(effect_of(SEGA)).as_dict() != _request(effect_of(NEGATIVE)).as_dict()


def test_scales_are_spread_below_the_edits_own_and_never_below_one() -> None:
    assert scales_around(7.5) == (7.5, 5.0, 3.0)
    assert scales_around(1.0) == (1.0,)
