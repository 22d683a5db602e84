"""Settings of one erasure trained one after another, and prompts that draw its concept unnamed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler import esd
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.esd_plan import Requests
from compiler.passes import PassContext
from compiler.passes.erase_esd import EraseEsd
from compiler.plan import make_plan
from compiler.progress import Silent
from compiler.sampling import predict
from compiler.strength import continued_steps, ladder
from compiler.sweep import Sweep
from compiler.teacher import Teacher
from compiler.terms import Term
from editspec import Erase, SpecErrors, parse_spec

STEPS = 30
EDIT: dict[str, Any] = {
    "edit": "erase",
    "concept": "star",
    "steps": STEPS,
    "learning_rate": 0.002,
    "batch": 4,
    "trajectories": 6,
    "timesteps": 3,
    "sampling_steps": 4,
}


class Bench:
    """A lesson on the tiny checkpoint, and how far a student is from what a setting asks of it."""

    def __init__(self, tiny: Path, **changed: Any) -> None:
        document = {"editspec": 1, "name": "test", "base": {"path": "tiny"}, "edits": [{**EDIT, **changed}]}
        spec = parse_spec(json.dumps(document))
        (edit,) = spec.edits
        assert isinstance(edit, Erase)
        self.edit, base = edit, Checkpoint.open(tiny)
        context = PassContext(spec, base, {}, 0, torch.device("cpu"), StageCache(), Silent())
        teacher = Teacher(context)
        self.lesson = esd.lesson([edit], Requests.of([edit], spec, {edit.id: ()}), teacher)
        self.student = teacher.unet
        names = EraseEsd().targets([edit], base.weights("unet").entries)
        self.sweep = Sweep(self.lesson, self.student, names, context, 0)

    @torch.no_grad()
    def missing(self, term: Term, deltas: dict[str, torch.Tensor]) -> float:
        """Mean squared distance to the term's target, as a share of the base's."""
        from compiler.judging import changed

        rows, prompt = term.examples.unbind(1)
        x, t = term.bank.take("model_input", rows), term.bank.take("timestep", rows)
        read = self.lesson.prompts.rows(prompt)
        base = predict(self.student, x, t, read) - term.target(rows)
        with changed(self.student, deltas):
            left = predict(self.student, x, t, read) - term.target(rows)
        return float(left.square().mean() / base.square().mean())


def test_settings_that_go_on_from_another_come_about_as_near_as_when_trained_alone(
    tiny_checkpoint: Path,
) -> None:
    bench, alone = Bench(tiny_checkpoint), Bench(tiny_checkpoint)
    etas = ladder(bench.edit)
    bench.sweep.train(bench.edit.negative_guidance)
    for eta in etas:
        if eta == bench.edit.negative_guidance:
            continue
        (term, *_) = bench.lesson.terms([replace(bench.edit, negative_guidance=eta)])
        alone.sweep.settings.clear()
        swept, single = bench.sweep.train(eta), alone.sweep.train(eta)
        assert swept.steps > single.steps
        # Shares of what the base misses: on the miniature, too, the gap is some hundredths.
        assert bench.missing(term, swept.deltas) <= bench.missing(term, single.deltas) + 0.1


def test_six_settings_take_less_than_three_trainings_and_leave_the_student_alone(
    tiny_checkpoint: Path,
) -> None:
    bench = Bench(tiny_checkpoint)
    before = {name: value.clone() for name, value in bench.student.named_parameters()}
    etas = ladder(bench.edit)
    assert len(etas) == 6
    first, *others = [bench.sweep.train(eta) for eta in etas]
    assert [one.done.evals for one in others] == [first.done.evals * continued_steps(STEPS) // STEPS] * 5
    assert bench.sweep.evals < 3 * first.done.evals
    after = dict(bench.student.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_same_eta_again_goes_on_where_it_was(tiny_checkpoint: Path) -> None:
    bench = Bench(tiny_checkpoint)
    first, longer = bench.sweep.train(1.0), bench.sweep.train(1.0, longer=STEPS)
    assert longer.steps == 2 * STEPS
    (term, *_) = bench.lesson.terms()
    assert bench.missing(term, longer.deltas) < bench.missing(term, first.deltas)


def test_a_prompt_that_draws_the_concept_unnamed_is_steered_away_from_it_too(tiny_checkpoint: Path) -> None:
    bench = Bench(tiny_checkpoint, implicit=["a night sky", "a flag"])
    erase, implicit, *_ = bench.lesson.terms()
    assert (erase.name, implicit.name) == ("erase", "implicit")
    rows = implicit.examples[:, 0]
    bank = bench.lesson.bank
    away = 2 * (bank.take("concept", rows) - bank.take("uncond", rows))  # eta 1
    assert torch.allclose(implicit.target(rows), bank.take("cond", rows) - away)
    read = {bank.prompts[at] for at in bank.column("prompt")[rows].tolist()}
    assert read == {"a night sky", "a flag"}
    assert bench.missing(implicit, bench.sweep.train(1.0).deltas) < 0.9


def test_for_the_concepts_own_prompt_both_targets_are_one(tiny_checkpoint: Path) -> None:
    bench = Bench(tiny_checkpoint, implicit=["a star"])
    rows = bench.lesson.terms()[1].examples[:, 0]
    erased = esd.target_of(bench.edit, bench.lesson.bank)(rows)
    assert torch.allclose(bench.lesson.terms()[1].target(rows), erased, atol=1e-5)


@pytest.mark.parametrize("other", [{"from": "house"}, {"schedule": "published"}])
def test_what_erases_less_than_the_whole_concept_has_no_implicit_prompts(
    tiny_checkpoint: Path, other: dict[str, Any]
) -> None:
    edit = {**EDIT, "implicit": ["a night sky"], **other}
    document = {"editspec": 1, "name": "test", "base": {"path": "tiny"}, "edits": [edit]}
    spec = parse_spec(json.dumps(document))
    with pytest.raises(SpecErrors, match="implicit"):
        make_plan(spec, Checkpoint.open(tiny_checkpoint), StageCache(), choose("cpu"))
