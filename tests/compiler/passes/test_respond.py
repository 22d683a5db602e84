from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.guided_bank import GuidingTeacher
from compiler.guided_request import GuidedRequest
from compiler.passes import PassContext, PassResult
from compiler.passes.respond import RespondPhrases, _lessons
from compiler.progress import Silent
from compiler.sampling import predict
from compiler.selections import select
from compiler.unet import add_deltas
from editspec import EditSpec, Respond, parse_spec

RESPOND = RespondPhrases()
WITHOUT: dict[str, Any] = {
    "text": "without fire",
    "direction": {"prompt": "a scene", "negative_prompt": "fire"},
}
SHORT: dict[str, Any] = {
    "edit": "respond", "id": "phrases", "phrases": [WITHOUT], "prompts": ["a house", "a tree"], "steps": 2,
    "learning_rate": 0.002, "batch": 8, "trajectories": 8, "timesteps": 2, "sampling_steps": 2,
    "guidance_scale": 4.0,
}  # fmt: skip
GUARD: dict[str, Any] = {
    "edit": "guide", "id": "guard", "away_from": ["crack"], "warmup": 0, "sampling_steps": 4, "scale": 3,
    "prompts": ["a moon"],
}  # fmt: skip
FAIR: dict[str, Any] = {
    "edit": "balance", "id": "fair", "prompts": ["a {}"], "professions": ["baker"], "groups": ["zan", "zin"],
    "shares": [0.75, 0.25],
}  # fmt: skip


def _spec(edit: Mapping[str, Any], *others: Mapping[str, Any], **changed: Any) -> EditSpec:
    edits = [dict(edit), *(dict(other) for other in others)]
    document = {"editspec": 1, "name": "test", "base": {"path": "tiny"}, "seed": 7, "edits": edits, **changed}
    return parse_spec(json.dumps(document))


@pytest.fixture
def base(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


def _context(
    spec: EditSpec, base: Checkpoint, upstream: Mapping[str, torch.Tensor] | None = None
) -> PassContext:
    return PassContext(spec, base, upstream or {}, spec.seed, torch.device("cpu"), StageCache(), Silent())


def _run(spec: EditSpec, base: Checkpoint) -> PassResult:
    return RESPOND.run(spec.edits[:1], _context(spec, base))


def _respond(spec: EditSpec) -> Respond:
    edit = spec.edits[0]
    assert isinstance(edit, Respond)
    return edit


def test_the_phrase_is_obeyed_and_the_prompt_without_it_stays(telling_checkpoint: Path) -> None:
    base = Checkpoint.open(telling_checkpoint)
    longer = {"steps": 60, "learning_rate": 0.0003, "schedule": "cosine", "selection": "full"}
    strong = {**WITHOUT, "direction": {**WITHOUT["direction"], "weight": 5}}
    spec = _spec({**SHORT, **longer, "phrases": [strong]})
    context = _context(spec, base)
    result = RESPOND.run(spec.edits, context)
    deltas = result.deltas
    assert [one["guidance_scale"] for one in result.record["faithfulness"]] == [4.0, 2.6667, 1.6]
    assert all(0 < one["missed"] < 0.8 for one in result.record["faithfulness"])  # from other noise
    teacher = GuidingTeacher(context)
    lesson, _ = _lessons(_respond(spec), spec)
    bank = teacher.bank(lesson.request)
    rows = torch.arange(len(bank))
    asked, x, t = bank.column("prompt"), bank.take("model_input", rows), bank.column("timestep")
    wanted = bank.take("cond", rows) + lesson.readings[0].change * bank.take("guidance", rows)

    @torch.no_grad()
    def predicted(ending: str) -> torch.Tensor:
        read = teacher.encode([f"{prompt}{ending}" for prompt in lesson.request.prompts])
        return predict(teacher.unet, x, t, read.rows(asked))

    before = predicted(" without fire")
    add_deltas(teacher.unet, deltas)
    for ending in (" without fire", ", without fire"):
        assert (predicted(ending) - wanted).norm() < 0.9 * (before - wanted).norm()
    kept, change = bank.take("cond", rows), (wanted - bank.take("cond", rows)).norm()
    assert (predicted("") - kept).norm() < 0.9 * change


def test_it_moves_exactly_what_it_declares(base: Checkpoint) -> None:
    spec = _spec(SHORT)
    result = _run(spec, base)
    entries = base.weights("unet").entries
    assert tuple(sorted(result.deltas)) == RESPOND.targets(spec.edits, entries)
    assert RESPOND.targets(spec.edits, entries) == select(entries, "cross-attention")
    assert all(torch.isfinite(delta).all() and delta.any() for delta in result.deltas.values())
    assert {"a house", "a house without fire", "a house, without fire"} <= set(result.record["prompts"])


@pytest.mark.parametrize("use", ["guard", "fair", None])
def test_the_run_takes_the_evals_that_were_planned_and_gives_the_same_bits_twice(
    base: Checkpoint, use: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phrase = WITHOUT if use is None else {"text": "without fire", "use": use}
    spec = _spec({**SHORT, "phrases": [phrase]}, GUARD, FAIR, preserve={"concepts": ["moon"]})
    counted = 0
    forward = torch.nn.Module.__call__

    def counting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal counted
        if type(module).__name__ == "UNet2DConditionModel":
            counted += len(args[0]) * (3 if torch.is_grad_enabled() else 1)
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    first = _run(spec, base)
    assert first.record["evals"] == RESPOND.cost(spec.edits[:1], spec, base).evals == counted
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "another"))
    told = {one["phrase"] for one in first.record.get("faithfulness", ())}
    assert told == (set() if use == "fair" else {"without fire"})  # a mixture has no original to be near to
    second = _run(spec, base)
    assert second.record == first.record
    assert all(torch.equal(second.deltas[name], delta) for name, delta in first.deltas.items())


def test_a_phrase_takes_the_effect_of_the_edit_it_uses() -> None:
    phrases = [{"text": "guarded", "use": "guard"}, {"text": "fair", "use": "fair"}]
    edit = {key: value for key, value in SHORT.items() if key != "prompts"} | {"phrases": phrases}
    spec = _spec(edit, GUARD, FAIR)
    guarded, _, zan, zin = _lessons(_respond(spec), spec)
    assert isinstance(guarded.request, GuidedRequest)
    assert guarded.request.effect.prompts == ("crack",)
    assert guarded.request.prompts == ("a moon",)
    assert guarded.readings[0].prompts == (("a moon guarded", "a moon, guarded"),)
    assert guarded.readings[0].change == 1 / 4.0
    assert [zan.request.prompts, zin.request.prompts] == [("a baker, zan",), ("a baker, zin",)]
    assert [lesson.readings[0].weight for lesson in (zan, zin)] == [0.75, 0.25]
    assert zan.readings[0].prompts == (("a baker fair", "a baker, fair"),)
    assert zan.readings[1].prompts == (("a baker",),)


def test_prompts_without_the_phrase_are_held_where_the_effect_leads_and_where_the_base_goes() -> None:
    spec = _spec(SHORT)
    guided, own = _lessons(_respond(spec), spec)
    assert isinstance(guided.request, GuidedRequest)
    assert own.request == guided.request.plain
    for held in (guided.readings[1], own.readings[0]):
        assert held.wanted == own.request.prompts
        assert held.prompts == tuple((prompt,) for prompt in own.request.prompts)
        assert (held.change, held.weight) == (0.0, _respond(spec).keep_weight)
    assert _lessons(replace(_respond(spec), keep_weight=0.0), spec)[0].readings == guided.readings[:1]


def test_another_effect_in_the_edit_it_uses_is_another_run() -> None:
    edit = {**SHORT, "phrases": [{"text": "guarded", "use": "guard"}]}
    first, second = (_spec(edit, {**GUARD, "scale": scale}) for scale in (3, 4))
    assert RESPOND.reads(first.edits[:1], first) != RESPOND.reads(second.edits[:1], second)


def test_prompts_without_the_phrase_stay_where_earlier_edits_left_them(base: Checkpoint) -> None:
    spec = _spec({**SHORT, "steps": 1, "learning_rate": 1e-12})
    names = RESPOND.targets(spec.edits, base.weights("unet").entries)
    upstream = {name: base.weights("unet").read(name) for name in names}
    loss = RESPOND.run(spec.edits, _context(spec, base, upstream)).record["loss"]
    assert loss["phrase 'without fire', without"][0] < 1e-9
    assert loss["phrase 'without fire', empty"][0] < 1e-9
    assert loss["phrase 'without fire'"][0] > 1e-7


@pytest.mark.parametrize(
    ("edit", "pointer", "message"),
    [
        ({"phrases": [{"text": "so", "direction": {"file": "v.pth"}}]}, "/edits/0/phrases/0", "a file"),
        ({"trajectories": 1}, "/edits/0/trajectories", "2 prompts need one each"),
        ({"prompts": [" ".join(["very big red star"] * 3)]}, "/edits/0", "tokens"),
    ],
    ids=["file", "few", "long"],
)
def test_what_cannot_work_is_refused_while_planning(
    base: Checkpoint, edit: dict[str, Any], pointer: str, message: str
) -> None:
    spec = _spec({**SHORT, **edit})
    ((where, what),) = RESPOND.check(spec.edits, spec, base)
    assert where == pointer
    assert message in what
