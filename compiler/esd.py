"""The lesson of ESD: what the student of an erasure reads, where, and what it should predict there.

Made once from the banks; then trained on as it is, at several strengths, or in rounds against attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compiler.adversary import WAYS, Attack, Victim, attack, join
from compiler.bank import Bank
from compiler.bank import join as join_banks
from compiler.conditioning import Conditioning
from compiler.deltas import added
from compiler.distil import Distilled, Term
from compiler.keep import keep_terms
from compiler.passes.erase_esd import (
    ATTACK_STEPS,
    ROUNDS,
    erase_from_target,
    negative_guidance_target,
    round_steps,
)
from compiler.sampling import predict
from compiler.strength import DRIFT_EXAMPLES
from compiler.training import numbered, settings_of, train
from compiler.unet import add_deltas, config_of, examples_at_once

if TYPE_CHECKING:
    from compiler.bank_request import BankRequest
    from compiler.passes import PassContext
    from compiler.teacher import Teacher
    from editspec import Erase


@dataclass(frozen=True)
class Lesson:
    """All that training needs. `rows` are the bank's rows of each edit, `students` what it reads there."""

    edits: tuple[Erase, ...]
    bank: Bank
    rows: tuple[range, ...]
    students: tuple[Mapping[str, Sequence[str]], ...]
    prompts: Conditioning
    number: Mapping[str, int]
    keep: tuple[Term, ...]

    def terms(self, edits: Sequence[Erase] | None = None) -> list[Term]:
        """The whole loss; `edits` are those of the lesson with another strength, if given."""
        chosen = tuple(edits or self.edits)
        names = ["erase"] if len(chosen) == 1 else [f"erase {edit.id}" for edit in chosen]
        found = []
        for edit, name, rows, students in zip(chosen, names, self.rows, self.students, strict=True):
            examples = self._examples(rows, students)
            found.append(Term(name, self.bank, examples, target_of(edit, self.bank), 1.0, edit.batch))
        return [*found, *self.keep]

    def _examples(self, rows: range, students: Mapping[str, Sequence[str]]) -> Tensor:
        prompt = self.bank.column("prompt")[rows.start : rows.stop].tolist()
        return torch.tensor(
            [
                (row, self.number[text])
                for row, at in zip(rows, prompt, strict=True)
                for text in students[self.bank.prompts[at]]
            ]
        )


def target_of(edit: Erase, bank: Bank) -> Callable[[Tensor], Tensor]:
    """What the student should predict at the bank's rows."""

    def target(rows: Tensor) -> Tensor:
        uncond, cond = bank.take("uncond", rows), bank.take("cond", rows)
        if edit.from_concept is None:
            return negative_guidance_target(uncond, cond, edit.negative_guidance)
        return erase_from_target(cond, uncond, bank.take("concept", rows), edit.negative_guidance)

    return target


def lesson(
    edits: Sequence[Erase],
    own: Sequence[BankRequest],
    students: Sequence[Mapping[str, Sequence[str]]],
    keep: Sequence[BankRequest],
    teacher: Teacher,
) -> Lesson:
    """The lesson of these edits together: their own banks first, then those of what is kept."""
    found = [teacher.bank(request) for request in (*own, *keep)]
    bank = join_banks(found)
    ends = [0]
    for part in found[: len(own)]:
        ends.append(ends[-1] + len(part))
    texts = [text for one in students for group in one.values() for text in group]
    prompts, number = numbered([*texts, *bank.prompts], teacher)
    joint = replace(edits[0], batch=sum(edit.batch for edit in edits))
    return Lesson(
        tuple(edits),
        bank,
        tuple(range(start, stop) for start, stop in pairwise(ends)),
        tuple(students),
        prompts,
        number,
        tuple(keep_terms(joint, keep, bank, ends[-1], number)),
    )


def fit(
    learnt: Lesson,
    edits: Sequence[Erase],
    student: torch.nn.Module,
    names: Sequence[str],
    context: PassContext,
    evals: int,
) -> Distilled:
    """Train on the lesson at the strength and for the steps that `edits` say; `student` stays as it was."""
    first = edits[0]
    return train(
        context,
        student,
        names,
        learnt.prompts,
        learnt.terms(edits),
        settings_of(first, context, "esd", *(edit.id for edit in edits)),
        pointer=context.spec.pointer(learnt.edits[0]),
        title=f"distil {', '.join(edit.id for edit in edits)}",
        evals=evals,
    )


def fit_robustly(
    learnt: Lesson, student: torch.nn.Module, names: Sequence[str], context: PassContext, evals: int
) -> tuple[Distilled, list[dict[str, Any]]]:
    """Train in rounds; after each but the last, attack the student and let it unlearn what was found too.

    The steps of all rounds add up to the edit's. The keep terms are the retain set of every round. Returns
    the sum of the changes and the attacks, as JSON. `student` ends as it was.
    """
    (edit,) = learnt.edits
    rows = torch.tensor(learnt.rows[0])
    prompt = learnt.bank.column("prompt")[rows]
    texts = [learnt.bank.prompts[at] for at in sorted(set(prompt.tolist()))]
    place = torch.tensor([texts.index(learnt.bank.prompts[at]) for at in prompt.tolist()])
    read = learnt.prompts.rows([learnt.number[text] for text in texts])
    victim = Victim(edit.concept, tuple(texts), read, learnt.bank, rows, place)
    deltas: dict[str, Tensor] = {}
    curve: dict[str, list[float]] = {}
    attacks: list[Attack] = []
    facts: list[dict[str, Any]] = []
    spent = 0
    for number, steps in enumerate(round_steps(edit.steps)):
        terms = learnt.terms()
        prompts = learnt.prompts
        if attacks:
            prompts = join([learnt.prompts, *(found.rows for found in attacks)])
            examples = torch.stack(
                [
                    torch.stack([rows, len(learnt.prompts) + k * len(texts) + place], dim=1)
                    for k in range(len(attacks))
                ]
            ).flatten(0, 1)
            attacked = Term("attacked", learnt.bank, examples, target_of(edit, learnt.bank), 1.0, edit.batch)
            terms = [terms[0], attacked, *terms[1:]]
        done = train(
            context,
            student,
            names,
            prompts,
            terms,
            settings_of(replace(edit, steps=steps), context, "esd", edit.id, f"round {number}"),
            pointer=context.spec.pointer(edit),
            title=f"distil {edit.id}, round {number + 1} of {ROUNDS + 1}",
            evals=evals // (ROUNDS + 1),
        )
        add_deltas(student, done.deltas)
        deltas = added(deltas, done.deltas)
        spent += done.evals
        attack_evals = 3 * ATTACK_STEPS * edit.batch
        for name, losses in done.curve.items():
            curve.setdefault(name, []).extend(losses)
        if number < ROUNDS:
            for way in WAYS:
                names_of_draw = (edit.id, number)
                found = attack(
                    student,
                    context.text(),
                    victim,
                    way,
                    batch=edit.batch,
                    seed=context.seed,
                    names=names_of_draw,
                    steps=ATTACK_STEPS,
                )
                attacks.append(found)
                spent += attack_evals
                facts.append(
                    {
                        "round": number + 1,
                        "attack": way,
                        "before": _short(found.before),
                        "after": _short(found.after),
                    }
                )
    add_deltas(student, {name: -change for name, change in deltas.items()})
    return Distilled(deltas, curve, spent), facts


@torch.no_grad()
def drift(student: torch.nn.Module, learnt: Lesson) -> float:
    """How far the student's predictions moved where they should not, as a share of what a prompt changes.

    Mean squared distance to the targets of the keep terms, over the mean of |e_c - e_0|^2 on the edit's rows.
    Zero for an edit that keeps nothing: there is nothing to measure it on.
    """
    device = learnt.prompts.hidden.device
    total, count = 0.0, 0
    for term in learnt.keep:
        few = torch.linspace(0, len(term.examples) - 1, min(len(term.examples), DRIFT_EXAMPLES)).long()
        for part in term.examples[few].split(examples_at_once(config_of(student))):
            rows, prompt = part.unbind(1)
            x, t = term.bank.take("model_input", rows).to(device), term.bank.take("timestep", rows).to(device)
            moved = predict(student, x, t, learnt.prompts.rows(prompt)) - term.target(rows).to(device)
            total += float(moved.square().mean(dim=(1, 2, 3)).sum())
            count += len(part)
    rows = torch.tensor([row for span in learnt.rows for row in span])[:DRIFT_EXAMPLES]
    unit = (learnt.bank.take("cond", rows) - learnt.bank.take("uncond", rows)).square().mean()
    return total / count / max(float(unit), 1e-30) if count else 0.0


def _short(value: float) -> float:
    return float(f"{value:.5g}")
