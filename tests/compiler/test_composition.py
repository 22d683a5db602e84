"""A spec that erases, guides, balances and responds at once, compiled from text to checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.interference import PROMPTS, PROMPTS_MADE, beside, made_already, probes
from compiler.pipeline import compile_spec
from compiler.plan import make_plan
from editspec import EditSpec, parse_spec

SHORT: dict[str, Any] = {
    "steps": 2, "learning_rate": 0.0005, "batch": 2, "trajectories": 2, "timesteps": 2, "sampling_steps": 3,
}  # fmt: skip
PAIR = {"groups": ["zan", "zin"]}
EDITS: list[dict[str, Any]] = [
    {"id": "solved", "edit": "balance", "method": "closed-form", "prompts": ["a nurse"], **PAIR},
    {"id": "no-star", "edit": "erase", "concept": "star", "method": "closed-form", "anchor": "shape"},
    {
        "id": "phrases",
        "edit": "respond",
        "prompts": ["a house"],
        "phrases": [{"text": "without crack", "use": "guard"}],
        **SHORT,
    },
    {"id": "fair", "edit": "balance", "prompts": ["a baker"], **PAIR, **SHORT},
    {"id": "guard", "edit": "guide", "away_from": ["crack"], "warmup": 1, "prompts": ["a house"], **SHORT},
    {"id": "no-flame", "edit": "erase", "concept": "flame", **SHORT},
]
IN_ORDER = [
    ("erase/esd", ["no-flame"]),
    ("guide/sega", ["guard"]),
    ("balance/distil", ["fair"]),
    ("respond/phrases", ["phrases"]),
    ("balance/closed-form", ["solved"]),
    ("erase/closed-form", ["no-star"]),
]


def _spec(base: Path) -> EditSpec:
    document = {"editspec": 1, "name": "all", "base": {"path": str(base)}, "seed": 3, "edits": EDITS}
    return parse_spec(json.dumps(document))


def test_the_plan_orders_the_passes_and_says_why(tiny_checkpoint: Path) -> None:
    plan = make_plan(_spec(tiny_checkpoint), Checkpoint.open(tiny_checkpoint), StageCache(), choose("cpu"))
    outlook = plan.outlook()["passes"]
    assert [(entry["pass"], entry["edits"]) for entry in outlook] == IN_ORDER
    reasons = [entry["reason"] for entry in outlook]
    assert "removed first" in reasons[0]
    assert "phrases use other edits" in reasons[3]
    assert reasons[4] == reasons[5]


@pytest.mark.slow
def test_all_kinds_compile_together_and_say_how_much_they_disturb_each_other(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    artifact = compile_spec(_spec(tiny_checkpoint), tmp_path / "out", device=choose("cpu"))
    record = json.loads((artifact.folder / "provenance" / "edits.json").read_text())
    assert [(entry["pass"], entry["edits"]) for entry in record["passes"]] == IN_ORDER
    *earlier, last = record["passes"]
    assert "interference" not in last
    for entry in earlier:
        measured = entry["interference"]
        assert measured["pass"] == entry["pass"]
        assert measured["done"] > 0
        assert measured["later"] > 0
        assert measured["ratio"] == pytest.approx(measured["later"] / measured["done"], rel=1e-2)
    for entry in record["passes"]:
        if entry["pass"].startswith(("guide", "balance/distil", "respond")):
            assert entry["record"]["evals"] == entry["evals"], "what is kept of other edits is planned"
    base, edited = (Checkpoint.open(folder).weights("unet") for folder in (tiny_checkpoint, artifact.folder))
    moved = {name for name in base.entries if not torch.equal(base.read(name), edited.read(name))}
    assert 0 < len(moved) <= record["tensors"]["changed"]


def test_a_pass_is_probed_at_a_few_prompts_of_its_own_edits(tiny_checkpoint: Path) -> None:
    spec = _spec(tiny_checkpoint)
    by_id = {edit.id: edit for edit in spec.edits}
    assert probes([by_id["fair"]], spec) == ("a baker",)
    assert probes([by_id["phrases"]], spec) == ("a house without crack",)
    assert probes([by_id["guard"]], spec) == ("a house",)
    both = probes([by_id["no-star"], by_id["no-flame"]], spec)
    assert len(both) == PROMPTS
    assert all("star" in prompt or "flame" in prompt for prompt in both)
    assert {"star", "flame"} <= set(" ".join(both).split())


def test_what_other_edits_are_for_is_known_beside_an_edit_unless_it_names_what_that_one_changes(
    tiny_checkpoint: Path,
) -> None:
    spec = _spec(tiny_checkpoint)
    by_id = {edit.id: edit for edit in spec.edits}
    found = beside([by_id["no-star"]], spec)
    assert {"a nurse", "a baker", "a house", "a house without crack"} <= set(found)
    assert any("flame" in prompt for prompt in found)
    assert not any("star" in prompt for prompt in found)
    assert "a nurse" not in beside([by_id["solved"]], spec)


def test_a_taught_edit_keeps_what_earlier_edits_are_for_and_nothing_of_its_own(tiny_checkpoint: Path) -> None:
    spec = _spec(tiny_checkpoint)
    by_id = {edit.id: edit for edit in spec.edits}
    assert all("flame" in prompt for prompt in made_already(by_id["guard"], spec))
    assert "a house" in made_already(by_id["fair"], spec), "what the guide before it is for"
    of_phrases = made_already(by_id["phrases"], spec)
    assert {"a house", "a baker"} <= set(of_phrases)
    assert not any("without crack" in prompt for prompt in of_phrases)
    assert not any("star" in prompt for prompt in of_phrases), "closed forms come later"
    assert made_already(by_id["no-flame"], spec) == ()


def test_what_a_taught_edit_keeps_of_others_is_part_of_its_cost(tiny_checkpoint: Path) -> None:
    whole = _spec(tiny_checkpoint)
    alone = parse_spec(json.dumps({**whole.document, "edits": [EDITS[4]]}))
    base = Checkpoint.open(tiny_checkpoint)
    (by_itself,), among_others = (
        [
            planned.evals
            for planned in make_plan(spec, base, StageCache(), choose("cpu")).passes
            if planned.ids == ("guard",)
        ]
        for spec in (alone, whole)
    )
    sampled = len(made_already(whole.edits[4], whole)) * SHORT["sampling_steps"] * 2
    assert among_others[0] >= by_itself + sampled


def test_many_earlier_edits_take_turns_in_few_prompts(tiny_checkpoint: Path) -> None:
    words = ["sixstar", "moon", "circle", "square", "triangle", "heart", "cross", "ring", "arrow", "tree"]
    erased = [{"id": f"no-{word}", "edit": "erase", "concept": word, **SHORT} for word in words]
    spec = parse_spec(json.dumps({**_spec(tiny_checkpoint).document, "edits": [*erased, EDITS[4]]}))
    kept = made_already(spec.edits[-1], spec)
    assert len(kept) == PROMPTS_MADE
    assert all(any(word in prompt.split() for prompt in kept) for word in words)
