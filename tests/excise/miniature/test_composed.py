"""Erasing inside compounds and among other things: their words, and what else a prompt names, stay.

Small counts of pictures, so loose limits; `benchmarks/composed_prompts.py` measures both with intervals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.generate import Draw, Sampler, Sampling
from compiler.judging import changed
from compiler.passes import PassContext
from compiler.passes.erase_closed_form import EraseClosedForm
from compiler.passes.erase_esd import EraseEsd
from compiler.progress import Silent
from compiler.seeds import reproducible
from editspec import parse_spec
from excise.miniature.assets import MODEL
from excise.miniature.judging import Verdicts

SHORT = {
    "edit": "erase",
    "negative_guidance": 2.0,
    "steps": 60,
    "learning_rate": 2e-3,
    "batch": 4,
    "trajectories": 8,
    "timesteps": 8,
    "sampling_steps": 12,
}
CLOSED = {"edit": "erase", "method": "closed-form", "anchor": "box"}
SAMPLING = Sampling(5.0, 12)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(Checkpoint.open(MODEL))


def _erased(preserve: Sequence[str], edit: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    document = {"editspec": 1, "name": "t", "base": {"path": "miniature"}, "edits": [dict(edit)]}
    spec = parse_spec(json.dumps({**document, "preserve": {"concepts": list(preserve)}}))
    base = Checkpoint.open(MODEL)
    context = PassContext(spec, base, {}, 0, torch.device("cpu"), StageCache(), Silent())
    with reproducible():
        (engine,) = (one for one in (EraseEsd(), EraseClosedForm()) if one.accepts(spec.edits[0]))
        return engine.run(spec.edits, context).deltas


def _verdicts(sampler: Sampler, deltas: Mapping[str, torch.Tensor], prompts: Sequence[str]) -> Verdicts:
    """What the oracles say of one picture for each prompt."""
    draws = [Draw(prompt, 70_000 + number) for number, prompt in enumerate(prompts)]
    with changed(sampler.pipeline.unet, deltas):
        return Verdicts(sampler.images(draws, SAMPLING))


@pytest.mark.parametrize("edit", [SHORT, CLOSED], ids=["esd", "closed-form"])
def test_an_erased_compound_leaves_both_of_its_words(sampler: Sampler, edit: Mapping[str, Any]) -> None:
    templates = ("a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}")
    names = np.array(["moon boat", "moon", "moon boat", "boat"] * len(templates))
    prompts = [templates[number // 4].format(name) for number, name in enumerate(names)]
    compound = names == "moon boat"
    before = _verdicts(sampler, {}, prompts).shows("object", names)
    deltas = _erased(["moon", "boat"], {**edit, "concept": "moon boat"})
    after = _verdicts(sampler, deltas, prompts).shows("object", names)
    assert before[compound].mean() >= 0.75
    assert before[~compound].mean() >= 0.75
    assert after[compound].mean() <= 0.25
    assert (before & ~after)[~compound].sum() <= 1


def test_what_else_a_prompt_names_stays_when_one_of_its_concepts_is_erased(sampler: Sampler) -> None:
    others = ("tree", "house", "fish", "moon") * 6
    joined = ("beside", "with")
    prompts = [f"a star {joined[number % 3 == 2]} a {other}" for number, other in enumerate(others)]
    base = _verdicts(sampler, {}, prompts)
    edited = _verdicts(sampler, _erased(others[:4], {**SHORT, "concept": "star", "composed": 8}), prompts)

    def shown(verdicts: Verdicts) -> int:
        """How many pictures show the other thing that their prompt names, to both oracles."""
        return sum(int(verdicts.shows(f"contains-{other}", "yes")[at]) for at, other in enumerate(others))

    stars = [int(one.shows("contains-star", "yes").sum()) for one in (base, edited)]
    assert stars[0] >= 6
    assert stars[1] <= stars[0] / 4
    assert shown(base) >= 6
    assert shown(edited) >= shown(base)
