"""The base tells which group a picture shows; what is drawn too seldom counts for more."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.base import open_base
from compiler.cache import StageCache
from compiler.calibration import FREQUENCY, MOST, RESPONSE, RESPONSES, Calibration, corrected, response
from compiler.passes import PassContext
from compiler.passes.balance import balance_lessons
from compiler.progress import Silent
from compiler.teacher import Teacher
from editspec import Balance, EditSpec, parse_spec
from editspec.model import PathBase
from excise.embedded import register

FAIR: dict[str, Any] = {
    "edit": "balance", "prompts": ["a photo of a {}"], "professions": ["nurse", "judge"],
    "groups": ["zan", "zin"], "group_template": "{group} {profession}", "trajectories": 8,
    "sampling_steps": 8, "guidance_scale": 5.0, "calibrate": 1,
}  # fmt: skip


def _spec(**changed: Any) -> EditSpec:
    document = {
        "editspec": 1, "name": "fair", "base": {"path": "miniature"}, "seed": 5,
        "edits": [{**FAIR, **changed}],
    }  # fmt: skip
    return parse_spec(json.dumps(document))


def _calibration(spec: EditSpec) -> Calibration:
    (edit,) = spec.edits
    assert isinstance(edit, Balance)
    return Calibration(edit, balance_lessons(edit, spec.seed))


def test_the_base_tells_by_denoising_which_group_a_picture_shows(tmp_path: Any) -> None:
    register()
    spec, base = _spec(), open_base(PathBase(path="miniature"), tmp_path)
    context = PassContext(spec, base, {}, 5, torch.device("cpu"), StageCache(tmp_path), Silent())
    teacher, calibration = Teacher(context), _calibration(spec)
    asked = [0] * 6 + [1] * 6
    named = ["a photo of a zan nurse"] * 6 + ["a photo of a zin judge"] * 6
    latents = calibration.drawn(teacher, teacher.unet, {}, 0, named)
    counts = calibration.told(teacher, teacher.unet, latents, asked, 0)
    assert counts.sum(1).tolist() == [6.0, 6.0]
    assert counts[0, 0] >= 5
    assert counts[1, 1] >= 5


COUNTS = st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=1, max_size=5).filter(
    lambda rows: sum(map(sum, rows)) > 0
)


@given(counts=COUNTS)
def test_within_their_bounds_the_weights_leave_every_prompts_total_as_it_was(counts: list[list[int]]) -> None:
    shares = (0.5, 0.3, 0.2)
    drawn, templates = torch.tensor(counts).float(), ["a {}"] * len(counts)
    subjects = [str(number) for number in range(len(counts))]
    found = corrected([(torch.ones(len(counts), 3), drawn)], shares, templates, subjects)
    assert float(found.min()) >= 1 / MOST
    assert float(found.max()) <= MOST
    inside = ((found > 1 / MOST) & (found < MOST)).all(1)
    torch.testing.assert_close((found @ torch.tensor(shares))[inside], torch.ones(int(inside.sum())))


@given(prompts=st.integers(1, 4), each=st.integers(1, 9))
def test_weights_that_draw_what_is_wanted_stay(prompts: int, each: int) -> None:
    weights = torch.tensor([[0.8, 1.2]]).expand(prompts, 2)
    counts = torch.full((prompts, 2), float(each))
    found = corrected([(weights, counts)], (0.5, 0.5), ["a {}"] * prompts, [*"abcd"][:prompts])
    torch.testing.assert_close(found, weights)


@given(lean=st.floats(-1.0, 1.0), follows=st.floats(0.8, 1.7))
def test_rounds_find_the_weights_whatever_the_lean_and_however_far_it_follows_them(
    lean: float, follows: float
) -> None:
    prompts, looks = ["a {}", "the {}"], []
    weights = torch.ones(2, 2)
    for _ in range(4):
        share = torch.sigmoid(lean + follows * (weights[:, 0] / weights[:, 1]).log())
        looks.append((weights, 1e4 * torch.stack([share, 1 - share], 1)))
        weights = corrected(looks, (0.5, 0.5), prompts, ["nurse", "nurse"])
    left = lean + follows * float((weights[0, 0] / weights[0, 1]).log())
    assert abs(left) < 0.02 + 0.1 * abs(lean)


def test_how_far_shares_follow_weights_is_told_by_rounds_the_more_the_further_these_moved() -> None:
    prompts, subjects = ["a {}"] * 2, ["nurse", "judge"]
    first = (torch.ones(2, 2), torch.full((2, 2), 1e4))
    assert response([first], prompts, subjects) == pytest.approx(RESPONSE)

    def told(ratio: float, power: float) -> float:
        taught = torch.tensor([[ratio**0.5, ratio**-0.5]] * 2)
        drawn = taught**power
        looks = [first, (taught, 2e4 * drawn / drawn.sum(1, keepdim=True))]
        return response(looks, prompts, subjects)

    assert RESPONSE < told(1.2, 1.7) < told(3.0, 1.7) < 1.7
    assert RESPONSE > told(1.2, 0.7) > told(3.0, 0.7) > 0.7
    assert told(1.2, 1.7) == pytest.approx(RESPONSE, abs=0.05)
    assert (told(3.0, 9.0), told(3.0, -9.0)) == RESPONSES[::-1]


def test_a_group_drawn_too_seldom_counts_for_more_and_a_prompt_leans_on_all_of_its_template() -> None:
    counts = torch.tensor([[20.0, 4.0], [12.0, 12.0], [0.0, 24.0]])
    templates, subjects = ["a {}", "a {}", "a photo of a {}"], ["nurse", "judge", "pilot"]
    found = corrected([(torch.ones(3, 2), counts)], (0.5, 0.5), templates, subjects)
    assert found[0, 1] > found[1, 1] > 1 > found[1, 0] > found[0, 0]
    assert found[2, 0] > 1 > found[2, 1]


def test_a_prompt_leans_on_what_other_templates_draw_of_its_subject() -> None:
    counts = torch.tensor([[6.0, 6.0], [20.0, 4.0], [6.0, 6.0], [4.0, 20.0]])
    templates, subjects = ["a {}", "the {}"] * 2, ["nurse", "nurse", "judge", "judge"]
    found = corrected([(torch.ones(4, 2), counts)], (0.5, 0.5), templates, subjects)
    assert found[0, 1] > 1 > found[0, 0]
    assert found[2, 0] > 1 > found[2, 1]
    torch.testing.assert_close(found[0], found[2].flip(0))


def test_lessons_show_the_rows_of_a_prompt_as_often_as_its_weight_says() -> None:
    calibration = _calibration(_spec(shares=[0.75, 0.25]))
    zan, zin = calibration.taught(torch.tensor([[1.0, 2.0], [0.5, 2.0]]))
    assert zan.readings[0].weight == pytest.approx(0.75 * 0.75)
    assert zin.readings[0].weight == pytest.approx(0.25 * 2.0)
    assert zan.readings[0].often == (round(FREQUENCY / 0.75), round(FREQUENCY * 0.5 / 0.75))
    assert zin.readings[0].often == (FREQUENCY, FREQUENCY)
    assert zan.readings[1:] == calibration.lessons[0].readings[1:]
