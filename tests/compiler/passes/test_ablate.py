from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.bank import Bank
from compiler.bank_request import BankRequest
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.keep import keep_requests
from compiler.passes import PassContext, PassResult
from compiler.passes.ablate import AblateConcept, _own_request
from compiler.passes.ablate_image import AblateImage, _away, _examples
from compiler.plan import make_plan
from compiler.progress import Silent
from compiler.sampling import predict
from compiler.selections import select
from compiler.teacher import Teacher
from compiler.unet import add_deltas
from editspec import Ablate, EditSpec, SpecErrors, parse_spec

ABLATE, IMAGE = AblateConcept(), AblateImage()
STAR: dict[str, Any] = {
    "edit": "ablate",
    "concept": "star",
    "anchor": "moon",
    "steps": 6,
    "learning_rate": 0.003,
    "batch": 4,
    "trajectories": 5,
    "timesteps": 3,
    "sampling_steps": 3,
}
POSTER: dict[str, Any] = {
    **{key: value for key, value in STAR.items() if key not in ("concept", "anchor")},
    "kind": "image",
    "concept": "sunrise",
    "captions": ["the red house", "a red house drawing"],
}


def _spec(*edits: Mapping[str, Any], folder: Path | None = None, **changed: Any) -> EditSpec:
    document = {
        "editspec": 1,
        "name": "test",
        "base": {"path": "tiny"},
        "seed": 7,
        "edits": [dict(edit) for edit in edits],
        "preserve": {"concepts": ["house"]},
        **changed,
    }
    return parse_spec(json.dumps(document), str((folder or Path()) / "spec.json"))


@pytest.fixture
def base(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


def _context(spec: EditSpec, base: Checkpoint) -> PassContext:
    return PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Silent())


def _run(spec: EditSpec, base: Checkpoint, at: int = 0) -> PassResult:
    edit_pass = IMAGE if IMAGE.accepts(spec.edits[at]) else ABLATE
    return edit_pass.run(spec.edits[at : at + 1], _context(spec, base))


def test_the_planner_compiles_every_kind_of_ablation(base: Checkpoint, tmp_path: Path) -> None:
    _picture(tmp_path)
    edits = [
        STAR,
        {**STAR, "concept": "dotted", "anchor": "plain", "kind": "style"},
        {**STAR, "concept": "fire", "anchor": "scene", "kind": "content"},
        {**POSTER, "image": "poster.png"},
    ]
    spec = _spec(*edits, folder=tmp_path)
    plan = make_plan(spec, base, StageCache(), choose("cpu"))
    assert [planned.edit_pass.name for planned in plan.passes] == ["ablate/concept"] * 3 + ["ablate/image"]
    assert all(planned.evals > 0 for planned in plan.passes)


def test_the_concept_comes_to_give_what_the_anchor_gives(base: Checkpoint) -> None:
    spec = _spec({**STAR, "steps": 60, "learning_rate": 0.001, "selection": "cross-attention"})
    context = _context(spec, base)
    deltas = ABLATE.run(spec.edits, context).deltas
    teacher = Teacher(context)
    (edit,) = spec.edits
    assert isinstance(edit, Ablate)
    bank = teacher.bank(_own_request(edit, spec))
    rows = torch.arange(len(bank))
    x, t, wanted = (bank.take(name, rows) for name in ("model_input", "timestep", "cond"))
    anchors = [bank.prompts[at] for at in bank.column("prompt").tolist()]
    concept = teacher.encode([prompt.replace("moon", "star") for prompt in anchors])
    with torch.no_grad():
        before = predict(teacher.unet, x, t, concept)
        add_deltas(teacher.unet, deltas)
        after = predict(teacher.unet, x, t, concept)
        kept = predict(teacher.unet, x, t, teacher.encode(anchors))
    apart = (before - wanted).square().mean()
    assert (after - wanted).square().mean() < 0.7 * apart
    assert (kept - wanted).square().mean() < 0.5 * apart


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"inputs": "noised"},
        {"teacher": "student", "inputs": "noised"},
        {"objective": "noise", "aliases": ["sixstar"]},
        {"keep_weight": 0},
        {"prompts": ["a red {}", "a small moon in a scene"]},
        {"refresh": 1, "aliases": ["sixstar"]},
    ],
    ids=["trajectory", "noised", "published target", "noise", "no keep term", "prompts", "refresh"],
)
def test_the_run_takes_the_evals_that_were_planned(
    base: Checkpoint, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec({**STAR, "steps": 2, "sampling_steps": 2, **changed})
    counted = _count_evals(monkeypatch)
    result = _run(spec, base)
    planned = ABLATE.cost(spec.edits, spec, base).evals
    assert result.record["evals"] == planned == counted[0]
    names = select(base.weights("unet").entries, "cross-attention-kv")
    assert tuple(sorted(result.deltas)) == names
    assert all(torch.isfinite(delta).all() and delta.any() for delta in result.deltas.values())
    assert json.loads(json.dumps(result.record)) == result.record


def test_edits_to_one_anchor_share_its_trajectories(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(STAR, {**STAR, "concept": "heart"}, {**STAR, "concept": "ring", "anchor": "tree"})
    sampled: list[str] = []
    sample = Teacher._sample

    def watched(self: Teacher, request: Any, folder: Path) -> None:
        sampled.append(request.prompts[0])
        sample(self, request, folder)

    monkeypatch.setattr(Teacher, "_sample", watched)
    context = _context(spec, base)
    for position in range(3):
        ABLATE.run(spec.edits[position : position + 1], context)
    assert sampled == ["a moon", "a house", "a tree"]


def test_the_same_ablation_gives_the_same_bits(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec({**STAR, "inputs": "noised"})
    first = _run(spec, base)
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "another"))
    again = _run(spec, base)
    assert again.record == first.record
    assert all(torch.equal(again.deltas[name], delta) for name, delta in first.deltas.items())


def test_a_file_of_prompts_counts_by_what_is_in_it(base: Checkpoint, tmp_path: Path) -> None:
    spec = _spec({**STAR, "prompts_file": "prompts.txt"}, folder=tmp_path)
    ((pointer, message),) = ABLATE.check(spec.edits, spec, base)
    assert pointer == "/edits/0/prompts_file"
    assert "No such file" in message
    (tmp_path / "prompts.txt").write_text('1. "a red moon"\n\n2. a moon\n', "utf-8")
    assert ABLATE.check(spec.edits, spec, base) == []
    before = ABLATE.reads(spec.edits, spec)
    (tmp_path / "prompts.txt").write_text("a big moon\n", "utf-8")
    assert ABLATE.reads(spec.edits, spec) != before


def test_an_anchor_prompt_that_names_the_concept_is_refused_when_planning(base: Checkpoint) -> None:
    spec = _spec({**STAR, "prompts": ["a moon", "a star beside a moon", "a tree"]})
    with pytest.raises(SpecErrors) as caught:
        make_plan(spec, base, StageCache(), choose("cpu"))
    assert [found.pointer for found in caught.value.diagnostics] == [
        "/edits/0/prompts/1",
        "/edits/0/prompts/2",
    ]


def test_captions_of_a_memorised_image_come_to_give_what_no_words_give(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _picture(tmp_path)
    spec = _spec({**POSTER, "image": "poster.png", "steps": 20}, folder=tmp_path)
    counted = _count_evals(monkeypatch)
    result = _run(spec, base)
    assert result.record["evals"] == IMAGE.cost(spec.edits, spec, base).evals == counted[0]
    losses = result.record["loss"]["ablate"]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert set(result.deltas) == set(select(base.weights("unet").entries, "full"))


def test_captions_give_what_no_words_give_also_where_pictures_of_no_words_lead(
    base: Checkpoint, tmp_path: Path
) -> None:
    _picture(tmp_path)
    gentle = {
        "steps": 40,
        "learning_rate": 3e-3,
        "negative_guidance": 0,
        "selection": "cross-attention",
    }
    spec = _spec({**POSTER, **gentle, "image": "poster.png"}, folder=tmp_path)
    deltas = _run(spec, base).deltas
    context = _context(spec, base)
    teacher = Teacher(context)
    # Other trajectories of the empty prompt than those trained on, late ones: far from the image.
    bank = teacher.bank(BankRequest(("",), (6,), seed=99, steps=3, strata=3))
    late = torch.nonzero(bank.column("step") == 2)[:, 0]
    x, t, wanted = (bank.take(name, late) for name in ("model_input", "timestep", "uncond"))
    caption = teacher.encode(["the red house"] * len(late))
    with torch.no_grad():
        before = predict(teacher.unet, x, t, caption)
        add_deltas(teacher.unet, deltas)
        after = predict(teacher.unet, x, t, caption)
    assert (after - wanted).square().mean() < 0.5 * (before - wanted).square().mean()


def _said_bank(apart: Sequence[float]) -> Bank:
    """Rows where a caption's prediction differs from the anchor's by `apart`."""
    anchor = torch.ones(len(apart), 1, 2, 2)
    columns = {"cond": anchor, "said": anchor + torch.tensor(apart)[:, None, None, None]}
    return Bank(("",), ({**columns, "timestep": torch.zeros(len(apart))},))


def test_captions_are_led_past_the_anchor_away_from_the_image() -> None:
    spec = _spec({**POSTER, "image": "poster.png", "negative_guidance": 0.5})
    (edit,) = spec.edits
    assert isinstance(edit, Ablate)
    target = _away(edit, _said_bank([0.0, 4.0]))(torch.tensor([0, 1]))
    torch.testing.assert_close(target[:, 0, 0, 0], torch.tensor([1.0, -1.0]))


def test_rows_where_a_caption_says_much_come_more_often_than_others_and_all_come() -> None:
    bank = _said_bank([0.1, 0.1, 0.1, 0.1, 3.0, 2.0, 0.0, 0.0])
    examples = _examples(bank, 4, [7, 8]).tolist()
    assert [examples.count([row, 7]) for row in range(8)] == [2, 2, 2, 2, 0, 0, 0, 0]
    assert [examples.count([row, 8]) for row in range(8)] == [0, 0, 0, 0, 3, 2, 1, 1]


def test_other_images_are_kept_by_their_captions_as_they_are_written(tmp_path: Path) -> None:
    spec = _spec({**POSTER, "image": "poster.png", "preserve": ["the blue moon"]}, folder=tmp_path)
    (edit,) = spec.edits
    assert isinstance(edit, Ablate)
    shared, own = keep_requests(edit, spec, ())
    assert own.prompts == ("the blue moon",)
    assert "a house" in shared.prompts


def test_the_image_counts_by_its_pixels_and_must_be_there(base: Checkpoint, tmp_path: Path) -> None:
    spec = _spec({**POSTER, "image": "poster.png"}, folder=tmp_path)
    ((pointer, _),) = IMAGE.check(spec.edits, spec, base)
    assert pointer == "/edits/0/image"
    _picture(tmp_path)
    before = IMAGE.reads(spec.edits, spec)
    _picture(tmp_path, "blue")
    assert IMAGE.check(spec.edits, spec, base) == []
    assert IMAGE.reads(spec.edits, spec) != before


def _picture(folder: Path, colour: str = "red") -> None:
    from PIL import Image

    Image.new("RGB", (80, 64), colour).save(folder / "poster.png")


def _count_evals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted = [0]
    forward = torch.nn.Module.__call__

    def counting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if type(module).__name__ == "UNet2DConditionModel":
            counted[0] += len(args[0]) * (3 if torch.is_grad_enabled() else 1)
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    return counted
