"""Teaches lessons: samples their banks, trains the student on all of them, and goes on in rounds.

Nothing at the top of this module imports torch: plans are made of what it stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from compiler.lessons import (
    Lesson,
    Reading,
    Rounds,
    TaughtEdit,
    evals_before,
    kept_lessons,
    training_evals,
)
from compiler.mining import Mining, mined
from compiler.passes import PassResult
from editspec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compiler.bank import Bank
    from compiler.conditioning import Conditioning
    from compiler.passes import PassContext
    from compiler.terms import Guided, Term


def teach(
    edit: TaughtEdit,
    lessons: Sequence[Lesson],
    targets: Sequence[str],
    mining: Mining | None,
    context: PassContext,
    together: tuple[float, ...] = (),
    rounds: Rounds | None = None,
) -> PassResult:
    """Sample the banks, train the weights `targets` on all lessons, and keep what the spec preserves.

    The student starts where earlier passes left the weights. What `mining` finds is kept too. Where the empty
    prompt learns something, what is kept is held in guided predictions at the scales `together`. `rounds` go
    on from there; each leaves the weights somewhere about what it aims at, so the result is their mean, later
    rounds counting for more (k for the k-th). Raises InputError where training diverges.
    """
    from compiler.deltas import added, between
    from compiler.distil import DistilSettings, Diverged, distil, summary
    from compiler.guided_bank import GuidingTeacher
    from compiler.judging import changed
    from compiler.unet import add_deltas

    pointer = context.spec.pointer(edit)
    neighbours = mined(mining, context)
    kept = kept_lessons(edit, context.spec, [word for word, _ in neighbours], together)
    every = (*lessons, *kept)
    teacher = GuidingTeacher(context)
    texts = [text for lesson in every for text in lesson.student_prompts]
    teacher.refuse_cut_prompts(pointer, texts)
    # What the student reads, one row for each prompt; row 0 is the unconditional one.
    number = {text: place + 1 for place, text in enumerate(dict.fromkeys(texts))}
    banks = [teacher.bank(lesson.request) for lesson in every]
    prompts: Conditioning = teacher.unconditional.join(teacher.encode(tuple(number)))
    student = teacher.unet  # from here on: the base's predictions are all in the banks
    add_deltas(student, context.upstream)
    before = [
        predicted_before(lesson, bank, number, student, prompts)
        for lesson, bank in zip(every, banks, strict=True)
    ]
    settings = DistilSettings(
        edit.steps,
        edit.learning_rate,
        context.seed,
        (edit.edit, edit.id),
        edit.loss,
        edit.schedule,
        optimiser=edit.optimiser,
        decay=edit.decay,
    )
    evals = training_evals(edit, every) + (training_evals(edit, every, rounds) if rounds else 0)
    deltas: dict[str, Tensor] = {}
    settled: dict[str, Tensor] = {}
    curve: dict[str, list[float]] = {}
    seen = []
    with context.progress.task(f"distil {edit.id}", evals) as task:
        for turn in range(1 + (rounds.rounds if rounds else 0)):
            if rounds and turn:
                again, facts = rounds.look(teacher, student, deltas)
                seen.append(facts)
                every = (*again, *kept)
                names = (*settings.names, f"round {turn}")
                settings = replace(
                    settings, steps=rounds.steps, learning_rate=rounds.learning_rate, names=names
                )
            terms = [
                term
                for lesson, bank, found in zip(every, banks, before, strict=True)
                for term in terms_of(lesson, bank, number, found)
            ]
            try:
                with changed(student, deltas):
                    done = distil(student, targets, prompts, terms, settings, task.advance)
            except Diverged as error:
                what = f"training diverged: {error}"
                raise InputError(
                    f"{pointer}/learning_rate", what, "choose a smaller learning_rate"
                ) from error
            deltas = added(deltas, done.deltas)
            settled = between(settled, deltas, 2 / (turn + 1)) if turn > 1 else deltas
            for name, losses in done.curve.items():
                curve.setdefault(name, []).extend(losses)
    looking = rounds.evals(context.checkpoint.config("scheduler")) if rounds else 0
    record = {
        "evals": evals_before(every, context.checkpoint) + evals + looking,
        "evals_of_training": evals,
        "prompts": sorted({text for lesson in lessons for text in lesson.student_prompts}),
        "kept_prompts": sorted({text for lesson in kept for text in lesson.student_prompts}),
        "neighbours": [[word, round(cosine, 4)] for word, cosine in neighbours],
        "loss": summary(curve),
        **({"rounds": seen} if seen else {}),
    }
    return PassResult(settled, record)


def predicted_before(
    lesson: Lesson, bank: Bank, number: Mapping[str, int], student: nn.Module, prompts: Conditioning
) -> dict[tuple[str | None, ...], Tensor]:
    """What is wanted at each row of a lesson's bank; `student` is not trained yet."""
    from compiler.predictions import predictions

    asked = bank.column("prompt").tolist()
    return {
        wanted: predictions(student, bank, prompts, [row_of(wanted[prompt], number) for prompt in asked])
        for wanted in lesson.wanted
    }


def row_of(text: str | None, number: Mapping[str, int]) -> int:
    """The row of what the student reads; the first is the unconditional one."""
    return 0 if text is None else number[text]


def terms_of(
    lesson: Lesson,
    bank: Bank,
    number: Mapping[str, int],
    found: Mapping[tuple[str | None, ...], Tensor],
) -> list[Term]:
    """The parts of the loss that one lesson adds, its readings in order; `found`: `predicted_before`."""
    import torch

    from compiler.terms import BRANCH_WEIGHT, Guided, Term, level

    asked = bank.column("prompt").tolist()

    def target(wanted: tuple[str | None, ...], change: float, rows: Tensor) -> Tensor:
        before = found[wanted][rows]
        return before + change * bank.take("guidance", rows) if change else before

    def guided(reading: Reading) -> Guided | None:
        if reading.guided is None:
            return None
        empty = (None,) * len(lesson.request.prompts)
        uncond = partial(target, empty, reading.guided.empty)
        return Guided(reading.guided.scales, uncond, BRANCH_WEIGHT * reading.guided.halves)

    timestep = bank.column("timestep").float()
    levelled = any(reading.level for reading in lesson.readings)
    counted = level(timestep, bank.take("guidance", torch.arange(len(bank)))) if levelled else None

    def examples(reading: Reading) -> Tensor:
        early = (timestep >= timestep.quantile(1 - reading.early_share)).tolist()
        return torch.tensor(
            [
                (row, row_of(text, number))
                for row, p in enumerate(asked)
                for text in reading.prompts[p]
                for _ in range(
                    (reading.early if early[row] else 1) * (reading.often[p] if reading.often else 1)
                )
            ]
        )

    return [
        Term(
            reading.name,
            bank,
            examples(reading),
            partial(target, reading.wanted, reading.change),
            reading.weight,
            reading.batch,
            guided=guided(reading),
            row_weights=counted if reading.level else None,
        )
        for reading in lesson.readings
    ]
