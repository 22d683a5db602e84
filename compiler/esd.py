"""The lesson of ESD: what the student of an erasure reads, where, and what it should predict there.

Made once from the banks; then trained on as it is, at several strengths, or in rounds against attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.bank import Bank
from compiler.bank import join as join_banks
from compiler.blocks import refresh_request
from compiler.conditioning import Conditioning
from compiler.distil import Distilled, DistilSettings
from compiler.esd_plan import Requests, composed_batch, student_prompts
from compiler.keep import keep_terms
from compiler.passes.erase_esd import erase_from_target, negative_guidance_target
from compiler.refresh import Refreshing, train_in_blocks
from compiler.sampling import predict
from compiler.strength import DRIFT_EXAMPLES
from compiler.terms import Term
from compiler.training import numbered, settings_of, train
from compiler.unet import config_of, examples_at_once

if TYPE_CHECKING:
    from compiler.bank_request import BankRequest
    from compiler.passes import PassContext
    from compiler.teacher import Teacher
    from editspec import Erase


@dataclass(frozen=True)
class Lesson:
    """All that training needs. `rows` are the bank's rows of each edit, `students` what it reads there.

    `composed` are rows of prompts that name the concept among others, `implicit` of those that draw it
    unnamed; none where the edit has none. From row `kept_rows` on up to its end the bank is of what is kept,
    as `kept` asked for it.
    """

    edits: tuple[Erase, ...]
    bank: Bank
    rows: tuple[Sequence[int], ...]
    composed: tuple[range, ...]
    implicit: tuple[range, ...]
    kept: tuple[BankRequest, ...]
    kept_rows: range
    students: tuple[Mapping[str, Sequence[str]], ...]
    prompts: Conditioning
    number: Mapping[str, int]
    keep_times: float = 1.0
    """Multiplies the edits' own weight on what is kept."""

    @property
    def keep(self) -> list[Term]:
        """The keep terms; those of the empty prompt are over all rows."""
        first = self.edits[0]
        weight = self.keep_times * first.keep_weight
        joint = replace(first, batch=sum(edit.batch for edit in self.edits), keep_weight=weight)
        return keep_terms(joint, self.kept, self.bank, self.kept_rows, self.number)

    def refreshed(self, fresh: Bank) -> Lesson:
        """The lesson of a single edit with further rows of its own prompts, labelled by the base."""
        (rows,) = self.rows
        bank = join_banks([self.bank, fresh])
        return replace(self, bank=bank, rows=((*rows, *range(len(self.bank), len(bank))),))

    def terms(self, edits: Sequence[Erase] | None = None) -> list[Term]:
        """The whole loss; `edits` are those of the lesson with another strength, if given."""
        chosen = tuple(edits or self.edits)
        names = ["erase"] if len(chosen) == 1 else [f"erase {edit.id}" for edit in chosen]
        found = []
        for edit, name, rows, students in zip(chosen, names, self.rows, self.students, strict=True):
            examples = self._examples(rows, students)
            found.append(Term(name, self.bank, examples, target_of(edit, self.bank), 1.0, edit.batch))
        alone = len(chosen) == 1
        for edit, rows in zip(chosen, self.composed, strict=True):
            if rows:
                name = "composed" if alone else f"composed {edit.id}"
                # Where the base draws the concept among others, what it predicts without the concept.
                target = lambda chosen: self.bank.take("kept", chosen)  # noqa: E731
                found.append(Term(name, self.bank, self._as_asked(rows), target, 1.0, composed_batch(edit)))
        for edit, rows in zip(chosen, self.implicit, strict=True):
            if rows:
                name = "implicit" if alone else f"implicit {edit.id}"
                away = implicit_target(edit, self.bank)
                found.append(Term(name, self.bank, self._as_asked(rows), away, 1.0, edit.batch))
        return [*found, *self.keep]

    def _as_asked(self, rows: range) -> Tensor:
        """Each row with the prompt that it was sampled for."""
        prompt = self.bank.column("prompt")[rows.start : rows.stop].tolist()
        return torch.tensor(
            [(row, self.number[self.bank.prompts[at]]) for row, at in zip(rows, prompt, strict=True)]
        )

    def _examples(self, rows: Sequence[int], students: Mapping[str, Sequence[str]]) -> Tensor:
        prompt = self.bank.column("prompt")[list(rows)].tolist()
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


def implicit_target(edit: Erase, bank: Bank) -> Callable[[Tensor], Tensor]:
    """Where a prompt draws the concept unnamed: its own prediction, as far away from the concept's guidance.

    For the concept's own prompt that is the target of ESD: e_c - (1 + eta) (e_c - e_0).
    """

    def target(rows: Tensor) -> Tensor:
        uncond, cond, concept = (bank.take(name, rows) for name in ("uncond", "cond", "concept"))
        return erase_from_target(cond, uncond, concept, 1.0 + edit.negative_guidance)

    return target


def lesson(edits: Sequence[Erase], asked: Requests, teacher: Teacher) -> Lesson:
    """The lesson of these edits together: own banks, composed ones, implicit ones, then what is kept."""
    students = [student_prompts(edit, own) for edit, own in zip(edits, asked.own, strict=True)]
    found = [teacher.bank(request) for request in asked.every]
    bank = join_banks(found)
    ends = [0]
    for part in found:
        ends.append(ends[-1] + len(part))
    spans = iter(range(start, stop) for start, stop in pairwise(ends))
    rows = tuple(next(spans) for _ in asked.own)
    texts = [text for one in students for group in one.values() for text in group]
    prompts, number = numbered([*texts, *bank.prompts], teacher)
    return Lesson(
        tuple(edits),
        bank,
        rows,
        tuple(next(spans) if edit.composed else range(0) for edit in edits),
        tuple(next(spans) if edit.implicit else range(0) for edit in edits),
        asked.kept,
        range(ends[len(asked.every) - len(asked.kept)], len(bank)),
        tuple(students),
        prompts,
        number,
    )


def fit(
    learnt: Lesson,
    edits: Sequence[Erase],
    student: torch.nn.Module,
    names: Sequence[str],
    context: PassContext,
    evals: int,
    settings: DistilSettings | None = None,
) -> Distilled:
    """Train on the lesson at the strength and for the steps that `edits` say; `student` stays as it was.

    `settings`, where given, say how long and how fast instead.
    """
    first = edits[0]
    return train(
        context,
        student,
        names,
        learnt.prompts,
        learnt.terms(edits),
        settings or settings_of(first, context, "esd", *(edit.id for edit in edits)),
        pointer=context.spec.pointer(learnt.edits[0]),
        title=f"distil {', '.join(edit.id for edit in edits)}",
        evals=evals,
    )


def fit_refreshing(
    learnt: Lesson, own: BankRequest, teacher: Teacher, names: Sequence[str], context: PassContext, evals: int
) -> Distilled:
    """Train in blocks; before each but the first, the student samples what the concept's prompts now give.

    So did the authors' own training, for each step anew (ESD, section 4). The teacher's U-Net is the student.
    """
    (edit,) = learnt.edits
    blocks = edit.refresh + 1

    def request(number: int) -> BankRequest:
        return refresh_request(edit, context.seed, number, own.prompts)

    def labels(asked: BankRequest) -> dict[str, Sequence[str] | None]:
        concept = {"concept": own.also["concept"]} if edit.from_concept else {}
        return {"uncond": None, "cond": asked.prompts, **concept}

    def block(fresh: Bank | None, settings: DistilSettings) -> Distilled:
        lesson = learnt if fresh is None else learnt.refreshed(fresh)
        return train(
            context,
            teacher.unet,
            names,
            lesson.prompts,
            lesson.terms(),
            settings,
            pointer=context.spec.pointer(edit),
            title=f"distil {edit.id}",
            evals=evals // blocks,
        )

    settings = settings_of(edit, context, "esd", edit.id)
    return train_in_blocks(context, teacher, settings, Refreshing(blocks, request, labels), block)


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
