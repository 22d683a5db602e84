"""What a distilled edit must leave as it is: preserved concepts, mined neighbours and the empty prompt.

The student is held to the frozen base's predictions along the base's own trajectories for these prompts. How
many trajectories that takes is known without loading anything, so that plans can say what a build costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from compiler.bank_request import BankRequest, SampledEdit
from compiler.mining import MiningEdit, neighbours_kept
from compiler.selections import text_alone
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    from compiler.bank import Bank
    from compiler.terms import Term
    from editspec import EditSpec

TRAJECTORIES_OF_A_CONCEPT = 2
# Weights that read no text know a preserved concept by its pictures alone: two show too few of them.
TRAJECTORIES_WITHOUT_TEXT = 6
# A memorised image is decided upon in the first steps, in which few trajectories show little of the noise.
TRAJECTORIES_OF_A_CAPTION = 48


class KeepingEdit(SampledEdit, MiningEdit, Protocol):
    """The fields with which a distilled edit says what it keeps and how much that counts."""

    @property
    def batch(self) -> int: ...


def templates_of(edit: object) -> tuple[str, ...]:
    """The templates of an edit's kind; those of objects where it has none or is of a memorised image."""
    return TEMPLATES.get(getattr(edit, "kind", ""), TEMPLATES["object"])


def trajectories_of_a_concept(edit: object) -> int:
    """How many trajectories show a preserved concept to what the edit trains."""
    selection = getattr(edit, "selection", None)  # a shift has none: it trains biases, few numbers
    few = selection is None or text_alone(selection)
    return TRAJECTORIES_OF_A_CONCEPT if few else TRAJECTORIES_WITHOUT_TEXT


def keep_requests(edit: KeepingEdit, spec: EditSpec, neighbours: Sequence[str]) -> list[BankRequest]:
    """Banks: of the spec's preserved concepts, which its edits share; of the edit's own; of neighbours.

    What they cost does not depend on which neighbours were found, nor on how many.
    """
    if not edit.keep_weight:
        return []
    each = trajectories_of_a_concept(edit)
    shared = tuple(dict.fromkeys(spec.preserve.concepts))
    own = tuple(concept for concept in dict.fromkeys(edit.preserve) if concept not in shared)
    templates = templates_of(edit)
    # A memorised image is asked for by its caption alone, and so is another that must stay.
    written = _written(edit)
    groups = [
        (shared, len(shared) * each, templates),
        (own, len(own) * TRAJECTORIES_OF_A_CAPTION, ("{}",))
        if written
        else (own, len(own) * each, templates),
        (tuple(neighbours), neighbours_kept(edit, spec) * each, templates),
    ]
    found = []
    for concepts, total, places in groups:
        if total:
            prompts = _taking_turns(concepts, places, total)
            found.append(BankRequest.of(edit, spec.seed, prompts, total))
    return found


def keep_batches(edit: KeepingEdit, requests: Sequence[BankRequest]) -> tuple[int, int]:
    """Examples a step: of what is preserved as many as of the edit's own, of empty prompts a quarter."""
    if not edit.keep_weight:
        return 0, 0
    return (edit.batch if requests else 0), -(-edit.batch // 4)


def keep_terms(
    edit: KeepingEdit, requests: Sequence[BankRequest], bank: Bank, kept: range, number: Mapping[str, int]
) -> list[Term]:
    """The keep terms over `bank`, whose rows `kept` are of `requests`: the base's predictions as targets.

    `number` is the row of each prompt in what the student reads; row 0 is the unconditional one. The empty
    prompt is kept at every x_t, the edit's own included: its e_0 is there.
    """
    import torch

    from compiler.terms import Term, more_often

    preserved, empty = keep_batches(edit, requests)
    prompt = bank.column("prompt").tolist()
    terms = []
    if preserved:
        captions = {*edit.preserve} if _written(edit) else set()
        rows = [row for row in kept if bank.prompts[prompt[row]] not in captions]
        if told := [row for row in kept if bank.prompts[prompt[row]] in captions]:
            numbers = torch.tensor(told)
            rows += more_often(numbers, bank.take("cond", numbers), bank.take("uncond", numbers)).tolist()
        examples = [(row, number[bank.prompts[prompt[row]]]) for row in rows]
        target = lambda rows: bank.take("cond", rows)  # noqa: E731
        terms.append(Term("preserve", bank, torch.tensor(examples), target, edit.keep_weight, preserved))
    if empty:
        examples = [(row, 0) for row in range(len(bank))]
        target = lambda rows: bank.take("uncond", rows)  # noqa: E731
        terms.append(Term("empty", bank, torch.tensor(examples), target, edit.keep_weight, empty))
    return terms


def _written(edit: object) -> bool:
    """Whether what the edit itself preserves are captions, not concepts to be put into templates."""
    return getattr(edit, "kind", "") == "image"


def _taking_turns(concepts: Sequence[str], templates: Sequence[str], trajectories: int) -> tuple[str, ...]:
    """Prompts for all `concepts`, which take turns with the templates: few prompts still show all of these.

    Where nothing was found to keep, the empty prompt: the number of trajectories is part of the plan.
    """
    if not concepts:
        return ("",)
    rounds = min(len(templates), -(-trajectories // len(concepts)))
    return tuple(
        dict.fromkeys(
            fill(templates[(number + turn) % len(templates)], concept)
            for turn in range(rounds)
            for number, concept in enumerate(concepts)
        )
    )
