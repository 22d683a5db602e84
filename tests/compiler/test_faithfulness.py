from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compiler.bank_request import BankRequest
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.effects import effect_of
from compiler.faithfulness import faithfulness, faithfulness_of
from compiler.guided_bank import GuidingTeacher
from compiler.guided_request import GuidedRequest
from compiler.passes import PassContext
from compiler.progress import Silent
from compiler.unet import add_deltas
from editspec import Guide, Guided, parse_spec

DOCUMENT = {
    "editspec": 1,
    "name": "test",
    "base": {"path": "tiny"},
    "edits": [{"edit": "guide", "away_from": ["crack"]}],
}
SEGA = Guide(
    id="a", away_from=(Guided(concept="crack"),), scale=5.0, warmup=1, threshold=0.5, momentum_scale=0.1,
    momentum_beta=0.4,
)  # fmt: skip
REQUEST = GuidedRequest(
    BankRequest(("a house", "a tree"), (3, 2), 5, steps=4, guidance_scale=4.0, strata=4),
    effect_of(SEGA),
    (4.0, 2.0),
)
BIAS = "conv_out.bias"


@pytest.fixture
def context(tiny_checkpoint: Path) -> PassContext:
    spec = parse_spec(json.dumps(DOCUMENT))
    base = Checkpoint.open(tiny_checkpoint)
    return PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Silent())


def _bias(context: PassContext, amount: float) -> dict[str, torch.Tensor]:
    """A change that moves every prediction by `amount`, whatever it reads."""
    return {BIAS: torch.full_like(context.weight(BIAS).float(), amount)}


def test_a_pass_that_learned_nothing_lacks_all_that_the_original_changes_wherever_it_began(
    context: PassContext,
) -> None:
    for upstream in ({}, _bias(context, 0.3)):
        found = faithfulness_of(REQUEST, _bias(context, 0.0), (4.0, 2.0), replace(context, upstream=upstream))
        assert [one["guidance_scale"] for one in found] == [4, 2]
        for bins in (one["bins"] for one in found):
            assert sum(one["rows"] for one in bins) == 5 * 4
            assert bins[0]["change"] == 0  # the warm-up
            assert all(one["ratio"] == pytest.approx(1, abs=1e-3) for one in bins if one["change"])
            assert any(one["change"] for one in bins)
        assert [one["missed"] for one in found] == pytest.approx([1, 1], abs=1e-3)


def test_what_a_pass_changes_at_the_wrong_place_is_its_error(context: PassContext) -> None:
    (found,) = faithfulness_of(REQUEST, _bias(context, 0.25), (4.0,), context)
    first = found["bins"][0]
    assert first["error"] == pytest.approx(0.25, rel=1e-3)  # both halves moved as much: so does their mix
    assert first["ratio"] == 1  # nothing was to change there


def test_of_a_students_first_pass_it_says_what_comparing_with_the_bank_says(context: PassContext) -> None:
    deltas = _bias(context, 0.05)
    teacher = GuidingTeacher(context)
    bank, prompts = teacher.bank(REQUEST), teacher.encode(REQUEST.plain.prompts)
    add_deltas(teacher.unet, deltas)
    direct = faithfulness(teacher.unet, bank, REQUEST.effect, teacher.unconditional, prompts, 2.0)
    (recorded,) = faithfulness_of(REQUEST, deltas, (2.0,), context)
    assert [one["ratio"] for one in recorded["bins"]] == pytest.approx(
        [one.ratio for one in direct], rel=1e-2
    )


def test_a_phrase_is_read_in_the_place_of_the_prompt_and_compared_with_what_that_predicted(
    context: PassContext,
) -> None:
    nothing = _bias(context, 0.0)
    (plain,) = faithfulness_of(REQUEST, nothing, (4.0,), context)
    (phrased,) = faithfulness_of(REQUEST, nothing, (4.0,), context, "{}, calm".format)
    assert phrased["bins"][0]["error"] > 0 == plain["bins"][0]["error"]  # nothing is to change there
