"""Robust erasure: rounds of training, each also against embeddings that brought the concept back before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compiler.adversary import WAYS, Attack, Victim, attack, join
from compiler.deltas import added
from compiler.distil import Distilled
from compiler.esd import Lesson, target_of
from compiler.esd_plan import ATTACK_STEPS, ATTACKED, RESTARTS, ROUNDS, round_steps
from compiler.terms import Term
from compiler.training import settings_of, train
from compiler.unet import add_deltas

if TYPE_CHECKING:
    from compiler.passes import PassContext


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
                    for k in range(len(attacks) * RESTARTS)
                ]
            ).flatten(0, 1)
            attacked = Term(
                "attacked", learnt.bank, examples, target_of(edit, learnt.bank), 1.0, ATTACKED * edit.batch
            )
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
                    restarts=RESTARTS,
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


def _short(value: float) -> float:
    return float(f"{value:.5g}")
