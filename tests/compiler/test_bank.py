from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.bank import Bank, build_bank, join, kept_steps, load_bank
from compiler.bank_request import BankRequest
from compiler.checkpoint import Checkpoint
from compiler.conditioning import Conditioning, encode, encode_unconditional
from compiler.sampling import load_scheduler, predict, sample
from compiler.seeds import gaussian, generator
from compiler.text import TextEncoder
from compiler.unet import build_unet

REQUEST = BankRequest(
    ("a star", "a moon"), (3, 2), seed=5, steps=8, strata=4, also={"anchor": ("a heart", "a red moon")}
)


@dataclass
class Base:
    unet: torch.nn.Module
    scheduler: Any
    encode: Callable[..., Conditioning]
    unconditional: Conditioning

    def build(self, request: BankRequest, folder: Path) -> Bank:
        folder.mkdir()
        evals = build_bank(self.unet, self.scheduler, self.encode, self.unconditional, request, folder)
        assert evals == request.evals(self.scheduler.config)
        return load_bank(folder)


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> Base:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    text = TextEncoder.from_checkpoint(checkpoint)
    return Base(
        build_unet(checkpoint),
        load_scheduler(checkpoint),
        lambda prompts: encode(text, prompts, checkpoint),
        encode_unconditional(text, checkpoint),
    )


def test_each_row_is_what_the_base_predicts_there(base: Base, tmp_path: Path) -> None:
    bank = base.build(REQUEST, tmp_path / "bank")
    rows = torch.arange(len(bank))
    x, t = bank.take("model_input", rows), bank.take("timestep", rows)
    prompt = bank.take("prompt", rows)
    wanted = {
        "uncond": base.unconditional.expand(len(rows)),
        "cond": base.encode(bank.prompts).rows(prompt),
        "anchor": base.encode(REQUEST.also["anchor"]).rows(prompt),
    }
    for name, texts in wanted.items():
        with torch.no_grad():
            predicted = predict(base.unet, x, t, texts)
        assert torch.allclose(bank.take(name, rows), predicted, atol=1e-5), name


def test_rows_lie_on_the_trajectories_that_plain_sampling_takes(base: Base, tmp_path: Path) -> None:
    bank = base.build(REQUEST, tmp_path / "bank")
    draw = (REQUEST.seed, "bank", "a moon", 1)  # the fifth trajectory
    seen: list[torch.Tensor] = []
    done = sample(
        base.unet,
        base.scheduler,
        gaussian((4, 8, 8), *draw, "noise")[None],
        base.unconditional,
        base.encode(["a moon"]),
        steps=REQUEST.steps,
        guidance_scale=REQUEST.guidance_scale,
        generators=[generator(*draw, "scheduler")],
        observe=lambda step: seen.append(step.model_input),
    )
    rows = (bank.column("trajectory") == 4).nonzero()[:, 0]
    steps = bank.column("step")[rows].tolist()
    assert [step // 2 for step in steps] == [0, 1, 2, 3]  # one of each quarter of eight steps
    on_path = torch.cat([seen[step] for step in steps])
    assert torch.allclose(bank.take("model_input", rows), on_path, atol=1e-4)
    assert torch.allclose(bank.column("latents")[4], done.latents[0], atol=1e-4)


def test_the_same_request_gives_the_same_bytes(base: Base, tmp_path: Path) -> None:
    base.build(REQUEST, tmp_path / "one")
    base.build(REQUEST, tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 2
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_more_trajectories_go_to_more_files_and_take_reads_across_them(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = base.build(REQUEST, tmp_path / "whole")
    monkeypatch.setattr("compiler.bank.trajectories_in_a_batch", lambda config: 2)
    parts = base.build(REQUEST, tmp_path / "parts")
    assert (len(whole.shards), len(parts.shards)) == (1, 3)
    rows = torch.tensor([19, 0, 8, 7, 8])
    for name in ("model_input", "cond", "anchor"):
        assert torch.allclose(parts.take(name, rows), whole.take(name, rows), atol=1e-4)
    for name in ("prompt", "trajectory", "step", "timestep"):
        assert torch.equal(parts.column(name), whole.column(name))
        assert torch.equal(parts.take(name, rows), whole.column(name)[rows])


def test_a_trajectory_does_not_depend_on_what_else_is_asked_for(base: Base, tmp_path: Path) -> None:
    alone = base.build(BankRequest(("a moon",), (2,), seed=5, steps=8, strata=4), tmp_path / "alone")
    among = base.build(REQUEST, tmp_path / "among")
    rows = (among.column("prompt") == 1).nonzero()[:, 0]
    assert torch.equal(among.column("step")[rows], alone.column("step"))
    found, wanted = among.take("cond", rows), alone.take("cond", torch.arange(len(alone)))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_half_storage_halves_the_file_and_gives_fp32_back(base: Base, tmp_path: Path) -> None:
    half = BankRequest(("a star",), (2,), seed=5, steps=4, storage="float16")
    bank = base.build(half, tmp_path / "half")
    full = base.build(BankRequest(("a star",), (2,), seed=5, steps=4), tmp_path / "full")
    rows = torch.arange(len(bank))
    assert bank.shards[0]["cond"].dtype == torch.float16
    assert bank.take("cond", rows).dtype == torch.float32
    assert torch.allclose(bank.take("cond", rows), full.take("cond", rows), rtol=1e-3, atol=1e-4)


def test_joined_banks_keep_their_prompts_and_trajectories_apart(base: Base, tmp_path: Path) -> None:
    first = base.build(BankRequest(("a star",), (2,), seed=5, steps=3, strata=3), tmp_path / "first")
    second = base.build(BankRequest(("a moon",), (1,), seed=5, steps=3, strata=3), tmp_path / "second")
    both = join([first, second])
    assert both.prompts == ("a star", "a moon")
    assert both.column("prompt").tolist() == [0] * 6 + [1] * 3
    assert both.column("trajectory").tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(both.take("cond", torch.tensor([7]))[0], second.take("cond", torch.tensor([1]))[0])


@pytest.mark.parametrize(("calls", "strata"), [(50, 10), (26, 10), (7, 7), (3, 10)])
def test_one_step_is_kept_of_each_stratum(calls: int, strata: int) -> None:
    seen = set()
    for copy in range(200):
        steps = kept_steps(calls, strata, generator(1, copy)).tolist()
        assert len(steps) == min(strata, calls)
        assert steps == sorted(set(steps))
        edges = [number * calls // len(steps) for number in range(len(steps) + 1)]
        assert all(low <= step < high for step, (low, high) in zip(steps, pairwise(edges), strict=True))
        seen |= set(steps)
    assert seen == set(range(calls))  # every step has its chance


def test_a_request_counts_its_evals_and_says_all_that_decides_its_rows() -> None:
    ddim = {"_class_name": "DDIMScheduler"}
    assert REQUEST.total == 5
    assert REQUEST.rows(ddim) == 20
    assert REQUEST.evals(ddim) == 2 * 5 * 8 + 20
    assert json.loads(json.dumps(REQUEST.as_dict()))["prompts"] == ["a star", "a moon"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompts": ()}, "needs prompts"),
        ({"prompts": ("a", "a")}, "each once"),
        ({"trajectories": (1,)}, "at least one trajectory"),
        ({"trajectories": (1, 0)}, "at least one trajectory"),
        ({"steps": 0}, "one step"),
        ({"also": {"cond": ("a", "b")}}, "name of its own"),
        ({"also": {"x": ("a",)}}, "one prompt for each"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BankRequest(**{"prompts": ("a", "b"), "trajectories": (1, 1), "seed": 1, **wrong})
