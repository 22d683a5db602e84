from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.deciding import DOUBT, _wrong, deciding_evals, doubts, share_open
from compiler.passes import PassContext
from compiler.progress import Silent
from compiler.teacher import Teacher
from editspec import Balance, parse_spec

FAIR: dict[str, Any] = {
    "edit": "balance", "id": "fair", "prompts": ["a photo of a {}"], "professions": ["baker", "nurse"],
    "groups": ["zan", "zin"], "group_template": "{group} {profession}", "trajectories": 8,
    "sampling_steps": 6, "guidance_scale": 5.0,
}  # fmt: skip


def _doubts(checkpoint: Path, **changed: Any) -> tuple[list[float], int, int]:
    """What is found, the evals that were told and those that were planned."""
    base = Checkpoint.open(checkpoint)
    document = {
        "editspec": 1, "name": "test", "base": {"path": "tiny"}, "seed": 7, "edits": [{**FAIR, **changed}]
    }  # fmt: skip
    spec = parse_spec(json.dumps(document))
    (edit,) = spec.edits
    assert isinstance(edit, Balance)
    context = PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Silent())
    told: list[int] = []
    found = doubts(edit, Teacher(context), told.append)
    return found, sum(told), deciding_evals(edit, base.config("scheduler"))


def test_before_the_first_step_nothing_tells_and_then_the_names_do(telling_checkpoint: Path) -> None:
    found, told, planned = _doubts(telling_checkpoint)
    assert len(found) == 6
    assert found[0] == 1.0
    assert found[-1] < found[1] < 1.0
    assert told == planned
    assert _doubts(telling_checkpoint)[0] == found


def test_groups_that_are_drawn_alike_are_never_told_apart() -> None:
    noise = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    shares = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    found = _wrong(noise.expand(3, 2, *noise.shape), noise, shares)
    assert found.flatten().tolist() == pytest.approx([1 - 0.49 - 0.04 - 0.01] * 10)


def test_several_attributes_are_all_their_combinations(telling_checkpoint: Path) -> None:
    found, told, planned = _doubts(telling_checkpoint, groups=[["red", "blue"], ["zan", "zin"]])
    assert found[0] == 1.0
    assert told == planned == 2 * 24 * 4 * 6


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("apart", [0.5, 1.0, 2.0, 4.0])
def test_the_chance_of_the_other_group_is_that_of_two_gaussians(apart: float, share: float) -> None:
    noise = torch.randn(40_000, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    paths = torch.stack([noise, noise + apart])[:, None]
    found = float(_wrong(paths, noise, torch.tensor([share, 1 - share], dtype=torch.float64)).mean())

    def confusion(x: float) -> float:
        one, other = share * stats.norm.pdf(x), (1 - share) * stats.norm.pdf(x, apart)
        return float(2 * one * other / (one + other))

    assert found == pytest.approx(integrate.quad(confusion, -12, 12 + apart)[0], abs=0.01)


@given(later=st.lists(st.floats(0, 1), max_size=60))
def test_the_open_share_ends_before_the_first_step_without_doubt(later: list[float]) -> None:
    doubt = [1.0, *later]
    steps = round(share_open(doubt) * len(doubt))
    assert 1 <= steps <= len(doubt)
    assert all(one >= DOUBT for one in doubt[:steps])
    assert steps == len(doubt) or doubt[steps] < DOUBT


def test_without_a_noise_schedule_it_is_the_share_of_who_is_drawn() -> None:
    assert share_open([]) == 0.2
