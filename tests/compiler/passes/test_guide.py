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
from compiler.faithfulness import faithfulness
from compiler.guided_bank import GuidingTeacher
from compiler.guided_request import GuidedRequest
from compiler.passes import EditPass, PassContext, PassResult, discover
from compiler.passes.guide import _lesson, guided_prompts
from compiler.progress import Silent
from compiler.selections import select
from compiler.teaching import predicted_before, terms_of
from compiler.unet import add_deltas
from editspec import EditSpec, Guide, parse_spec

SHORT: dict[str, Any] = {
    "edit": "guide", "steps": 2, "learning_rate": 0.002, "batch": 8, "trajectories": 6, "timesteps": 4,
    "sampling_steps": 4, "guidance_scale": 4.0, "selection": "full",
}  # fmt: skip
SEGA: dict[str, Any] = {
    **SHORT, "away_from": ["crack", {"concept": "spill", "weight": 0.5}], "toward": ["moon"], "warmup": 1,
    "threshold": 0.5, "scale": 4,
}  # fmt: skip
SLD: dict[str, Any] = {
    **SHORT, "method": "sld", "preset": "max", "away_from": ["crack", "spill"], "warmup": 0,
}  # fmt: skip
NEGATIVE: dict[str, Any] = {**SHORT, "method": "negative-prompt", "away_from": ["crack"]}
ALL = {"sega": SEGA, "sld": SLD, "negative-prompt": NEGATIVE}


def _spec(*edits: Mapping[str, Any], **changed: Any) -> EditSpec:
    document = {
        "editspec": 1,
        "name": "test",
        "base": {"path": "tiny"},
        "seed": 7,
        "edits": [dict(edit) for edit in edits],
        **changed,
    }
    return parse_spec(json.dumps(document))


@pytest.fixture
def base(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


def _context(spec: EditSpec, base: Checkpoint) -> PassContext:
    return PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Silent())


def _pass_of(spec: EditSpec) -> EditPass:
    (found,) = [edit_pass for edit_pass in discover() if edit_pass.accepts(spec.edits[0])]
    return found


def _run(spec: EditSpec, base: Checkpoint) -> PassResult:
    return _pass_of(spec).run(spec.edits[:1], _context(spec, base))


@pytest.mark.parametrize("method", ALL)
def test_each_method_has_its_pass_and_moves_exactly_what_it_declares(base: Checkpoint, method: str) -> None:
    spec = _spec({**ALL[method], "selection": "cross-attention"})
    edit_pass, result = _pass_of(spec), _run(spec, base)
    entries = base.weights("unet").entries
    assert edit_pass.name == f"guide/{method}"
    assert tuple(sorted(result.deltas)) == edit_pass.targets(spec.edits, entries)
    assert edit_pass.targets(spec.edits, entries) == select(entries, "cross-attention")
    assert all(torch.isfinite(delta).all() and delta.any() for delta in result.deltas.values())


# A random network learns no sparse pattern, so nothing of SEGA is masked. At 0 the empty branch is judged
# alone, at 1 the text branch.
@pytest.mark.parametrize(
    ("method", "changed", "scales"),
    [
        ("sega", {"threshold": 0.0}, (1, 4)),
        ("sld", {}, (1, 4)),
        ("sld", {"branch": "opposite"}, (3, 5, 7.5)),
        ("negative-prompt", {}, (0,)),
    ],
    ids=["sega", "sld", "sld, opposite", "negative-prompt"],
)
def test_predictions_come_nearer_to_the_runtime_original_where_nothing_was_trained(
    telling_checkpoint: Path, method: str, changed: dict[str, Any], scales: tuple[float, ...]
) -> None:
    base = Checkpoint.open(telling_checkpoint)
    longer = {"steps": 40, "learning_rate": 0.0003, "schedule": "cosine"}
    spec = _spec({**ALL[method], **changed, **longer})
    context = _context(spec, base)
    deltas = _pass_of(spec).run(spec.edits[:1], context).deltas
    (edit,) = spec.edits
    assert isinstance(edit, Guide)
    trained = _lesson(edit, spec.seed).request
    assert isinstance(trained, GuidedRequest)
    teacher = GuidingTeacher(context)
    held_out = teacher.bank(replace(trained, plain=replace(trained.plain, seed=99)))
    add_deltas(teacher.unet, deltas)
    prompts = teacher.encode(trained.prompts)
    for scale in scales:
        (found,) = faithfulness(
            teacher.unet, held_out, trained.effect, teacher.unconditional, prompts, scale, bins=1
        )
        assert found.change > 0
        assert found.ratio < 0.9


@pytest.mark.parametrize("method", ALL)
def test_it_records_how_near_it_comes_to_its_original_at_the_scales_of_guidance(
    base: Checkpoint, method: str
) -> None:
    found = _run(_spec(ALL[method]), base).record["faithfulness"]
    assert [one["guidance_scale"] for one in found] == [4.0, 2.6667, 1.6]
    for bins in (one["bins"] for one in found):
        assert sum(one["rows"] for one in bins) == SHORT["trajectories"] * SHORT["timesteps"]
        timesteps = [at for one in bins for at in reversed(one["timesteps"])]
        assert timesteps == sorted(timesteps, reverse=True)
        changing = [one for one in bins if one["change"]]
        assert changing
        assert all(one["ratio"] == pytest.approx(one["error"] / one["change"], rel=0.02) for one in changing)


@pytest.mark.parametrize("preserve", [{}, {"concepts": ["house"], "auto": 2}], ids=["nothing", "preserve"])
@pytest.mark.parametrize("method", ["sega", "sld"])
def test_the_run_takes_the_evals_that_were_planned(
    base: Checkpoint, method: str, preserve: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(ALL[method], preserve=preserve)
    counted = 0
    forward = torch.nn.Module.__call__

    def counting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal counted
        if type(module).__name__ == "UNet2DConditionModel":
            counted += len(args[0]) * (3 if torch.is_grad_enabled() else 1)
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    record = _run(spec, base).record
    assert record["evals"] == _pass_of(spec).cost(spec.edits[:1], spec, base).evals == counted


def test_the_same_edit_gives_the_same_bits_with_a_warm_and_a_cold_cache(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(SEGA, preserve={"concepts": ["house"], "auto": 1})
    cold, warm = _run(spec, base), _run(spec, base)
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "another"))
    again = _run(spec, base)
    for other in (warm, again):
        assert other.record == cold.record
        assert all(torch.equal(other.deltas[name], delta) for name, delta in cold.deltas.items())


def test_the_record_tells_the_branch_and_the_timesteps_of_the_guidance(base: Checkpoint) -> None:
    record = _run(_spec({**SEGA, "cooldown": 3}, preserve={"auto": 2}), base).record
    timesteps = GuidingTeacher(_context(_spec(SEGA), base)).scheduler
    timesteps.set_timesteps(4, device=torch.device("cpu"))
    assert record["guided_timesteps"] == timesteps.timesteps[[1, 2]].tolist()
    assert record["branch"] == "both"
    assert not {"crack", "spill"} & {word for word, _ in record["neighbours"]}
    assert len(record["neighbours"]) == 2
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("method", "text", "empty", "halves"),
    [("sega", 1.0, 1.0, 1 / 16), ("sld", -1.0, 0.0, 1.0), ("negative-prompt", 0.0, 1.0, 9 / 16)],
)
def test_both_halves_learn_together_what_each_of_them_takes_of_the_guidance(
    method: str, text: float, empty: float, halves: float
) -> None:
    (edit,) = _spec(ALL[method]).edits
    assert isinstance(edit, Guide)
    (reading,) = _lesson(edit, 0).readings
    assert reading.guided is not None
    assert (reading.change, reading.guided.empty, reading.evals_each) == (text, empty, 6)
    assert reading.guided.halves == pytest.approx(halves), "as much as it shows in what is drawn"
    assert reading.guided.scales == pytest.approx((4.0, 4.0 * 2 / 3, 4.0 * 2 / 5))


@pytest.mark.parametrize(("edit", "amount"), [(SLD, 0.6), (NEGATIVE, 0.4)], ids=["sld", "negative-prompt"])
def test_opposite_halves_each_learn_about_half_and_count_for_as_much(
    edit: dict[str, Any], amount: float
) -> None:
    (built,) = _spec({**edit, "branch": "opposite"}).edits
    assert isinstance(built, Guide)
    (reading,) = _lesson(built, 0).readings
    assert reading.guided is not None
    assert reading.guided.scales == pytest.approx((4.0, 4.0 * 2 / 3, 4.0 * 2 / 5))
    assert -reading.change == reading.guided.empty == pytest.approx(amount, abs=0.06)
    assert 0.2 < reading.guided.halves < 0.5


def test_an_empty_prompt_is_learned_at_guidance_1_too_where_it_shows_in_nothing() -> None:
    (edit,) = _spec({**NEGATIVE, "guidance_scale": 1, "branch": "empty"}).edits
    assert isinstance(edit, Guide)
    (reading,) = _lesson(edit, 0).readings
    assert reading.guided is not None
    assert reading.guided.halves == 1


def test_an_edit_is_learned_by_the_optimiser_that_it_names(base: Checkpoint) -> None:
    adam, muon = (_run(_spec({**NEGATIVE, "optimiser": kind}), base) for kind in ("adam", "muon"))
    assert any(not torch.equal(adam.deltas[name], delta) for name, delta in muon.deltas.items())


def test_decay_keeps_an_edit_nearer_to_the_base(base: Checkpoint) -> None:
    free, held = (_run(_spec({**NEGATIVE, "decay": decay}), base) for decay in (0, 100))
    sizes = [sum(float(delta.norm()) for delta in one.deltas.values()) for one in (free, held)]
    assert 0 < sizes[1] < 0.9 * sizes[0]


@pytest.mark.parametrize("even", [False, True])
def test_timesteps_count_alike_where_the_edit_asks_for_it(base: Checkpoint, even: bool) -> None:
    spec = _spec({**SEGA, "even_timesteps": even})
    (edit,) = spec.edits
    assert isinstance(edit, Guide)
    lesson, teacher = _lesson(edit, spec.seed), GuidingTeacher(_context(spec, base))
    bank = teacher.bank(lesson.request)
    number = {text: place + 1 for place, text in enumerate(lesson.student_prompts)}
    prompts = teacher.unconditional.join(teacher.encode(tuple(number)))
    (term,) = terms_of(lesson, bank, number, predicted_before(lesson, bank, number, teacher.unet, prompts))
    if not even:
        assert term.row_weights is None
        return
    assert term.row_weights is not None
    step, every = bank.column("step"), torch.arange(len(bank))
    counted = term.row_weights * bank.take("guidance", every).square().mean(dim=(1, 2, 3))
    means = [float(counted[step == index].mean()) for index in step.unique().tolist()]
    assert means[0] == 0, "a warm-up"
    assert means[1:] == pytest.approx([means[1]] * len(means[1:]), rel=1e-3)


@pytest.mark.parametrize(("method", "together"), [("sega", True), ("sld", False), ("negative-prompt", True)])
def test_what_is_preserved_is_held_as_it_is_drawn_where_the_empty_prompt_learns(
    base: Checkpoint, method: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def refuse(*arguments: Any, **named: Any) -> None:
        seen.extend(arguments[3])
        raise KeyboardInterrupt

    monkeypatch.setattr("compiler.distil.distil", refuse)
    with pytest.raises(KeyboardInterrupt):
        _run(_spec(ALL[method], preserve={"concepts": ["house"]}), base)
    kept = {term.name: term for term in seen if term.name.startswith("preserve")}
    assert set(kept) == ({"preserve 0"} if together else {"preserve 0", "preserve 0, empty"})
    guided = kept["preserve 0"].guided
    assert (guided is not None) == together
    if guided is not None:
        assert guided.alone == 0.0
        rows = kept["preserve 0"].examples[:, 0]
        bank = kept["preserve 0"].bank
        torch.testing.assert_close(guided.uncond(rows), bank.take("uncond", rows))
        torch.testing.assert_close(kept["preserve 0"].target(rows), bank.take("cond", rows))


def test_trajectories_spread_over_guidance_scales_only_where_the_branch_allows_it() -> None:
    for branch, scales in (("both", (4.0, 4.0 * 2 / 3, 4.0 * 2 / 5)), ("text", (4.0,))):
        (edit,) = _spec({**SEGA, "branch": branch}).edits
        assert isinstance(edit, Guide)
        request = _lesson(edit, 0).request
        assert isinstance(request, GuidedRequest)
        assert request.scales == pytest.approx(scales)


def test_without_prompts_it_learns_on_its_concepts_and_adds_to_prompts_without_one() -> None:
    away, toward, own = _spec(
        {**SHORT, "id": "a", "warmup": 0, "away_from": ["crack", "spill"]},
        {**SHORT, "id": "b", "warmup": 0, "toward": ["moon"]},
        {**SHORT, "id": "c", "warmup": 0, "toward": ["moon"], "prompts": ["a house"]},
    ).edits
    assert isinstance(away, Guide)
    assert isinstance(toward, Guide)
    assert isinstance(own, Guide)
    assert guided_prompts(away)[:3] == ("a crack", "a spill", "a photo of a crack")
    assert guided_prompts(toward) == ("a photo", "a picture", "a drawing", "an image")
    assert guided_prompts(own) == ("a house",)


@pytest.mark.parametrize(
    ("edit", "pointer", "message"),
    [
        ({**SLD, "away_from": [{"concept": "crack", "weight": 2}]}, "/edits/0/away_from", "without weights"),
        ({**SEGA, "toward": [{"concept": "moon", "weight": -1}]}, "/edits/0/toward", "not negative"),
        ({**NEGATIVE, "branch": "text", "guidance_scale": 1}, "/edits/0/guidance_scale", "nothing"),
        ({**SEGA, "prompts": [" ".join(["very big red star"] * 4)]}, "/edits/0", "tokens"),
    ],
    ids=["weights", "negative weight", "no guidance", "long"],
)
def test_what_cannot_work_is_refused_while_planning(
    base: Checkpoint, edit: dict[str, Any], pointer: str, message: str
) -> None:
    spec = _spec(edit)
    ((where, what),) = _pass_of(spec).check(spec.edits, spec, base)
    assert where == pointer
    assert message in what
