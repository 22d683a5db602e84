"""What erasures by distillation sample, what the student reads there, and what it costs; no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.bank_request import BankRequest
from compiler.blocks import block_check_evals, block_steps, refresh_evals
from compiler.held_out import check_evals
from compiler.keep import keep_batches, keep_requests
from compiler.strength import judging_evals, searching_steps
from editspec.templates import COMPOSED, TEMPLATES, fill

if TYPE_CHECKING:
    from editspec import EditSpec, Erase

ROUNDS = 4  # of attacks, where an erasure is robust
ATTACKS = 2  # ways of attacking in each round: learned token, soft prefix
RESTARTS = 2  # of each attack, which share its batch
# In 30 steps from four starts an attack finds nothing: what is unlearned then are random embeddings, and a
# longer attack from outside still finds its way back.
ATTACK_STEPS = 100
ATTACKED = 2  # examples of attacked prompts a step, for each of the concept's own


def subject(edit: Erase) -> str:
    """What trajectories are sampled for: the concept, or what it is erased from."""
    return edit.from_concept or edit.concept


def own_request(edit: Erase, seed: int) -> BankRequest:
    """Trajectories of the subject in every template; with `from`, the concept's predictions beside them."""
    templates = TEMPLATES[edit.kind]
    also = (
        {"concept": [fill(template, edit.concept) for template in templates]} if edit.from_concept else None
    )
    prompts = [fill(template, subject(edit)) for template in templates]
    return BankRequest.of(edit, seed, prompts, edit.trajectories, also)


def student_prompts(edit: Erase, own: BankRequest) -> dict[str, list[str]]:
    """For each prompt of the own bank, what the student reads there: the same, and it with each alias."""
    words = [edit.from_concept] if edit.from_concept else [edit.concept, *edit.aliases]
    templates = TEMPLATES[edit.kind][: len(own.prompts)]
    return {
        prompt: [fill(template, word) for word in words]
        for prompt, template in zip(own.prompts, templates, strict=True)
    }


def composed_with(edit: Erase, spec: EditSpec) -> tuple[str, ...]:
    """What composed prompts name beside the concept: all that is preserved by name."""
    return tuple(dict.fromkeys((*spec.preserve.concepts, *edit.preserve)))


def composed_request(edit: Erase, spec: EditSpec) -> BankRequest | None:
    """Trajectories of prompts that name the concept, or an alias, beside what is preserved; None without.

    `kept` are the base's predictions there for the same prompt without the concept. Templates, names and
    others take turns, so that few trajectories still show all of these.
    """
    others, names, templates = composed_with(edit, spec), (edit.concept, *edit.aliases), COMPOSED[edit.kind]
    if not edit.composed or not others:
        return None
    kept: dict[str, str] = {}
    for turn in range(len(templates) * len(names)):
        for place, other in enumerate(others):
            template, without = templates[(turn + place) % len(templates)]
            name = names[(turn // len(templates) + place) % len(names)]
            kept[fill(template, name).replace("{other}", other)] = without.replace("{other}", other)
    return BankRequest.of(edit, spec.seed, tuple(kept), edit.composed, {"kept": tuple(kept.values())})


def composed_batch(edit: Erase) -> int:
    """Examples of composed prompts a step: as many as of the concept's own; none without."""
    return edit.batch if edit.composed else 0


def implicit_request(edit: Erase, spec: EditSpec) -> BankRequest | None:
    """Trajectories of prompts that draw the concept unnamed, with its prediction beside; None without."""
    if not edit.implicit:
        return None
    concept = fill(TEMPLATES[edit.kind][0], edit.concept)
    count = max(edit.trajectories, len(edit.implicit))
    return BankRequest.of(edit, spec.seed, edit.implicit, count, {"concept": [concept] * len(edit.implicit)})


def kept_requests(
    group: Sequence[Erase], spec: EditSpec, neighbours: Mapping[str, Sequence[str]]
) -> list[BankRequest]:
    """What all edits of a run keep; the spec's preserved concepts once. Counts do not depend on mining."""
    found: list[BankRequest] = []
    for edit in group:
        requests = keep_requests(edit, spec, neighbours[edit.id])
        shared = 1 if spec.preserve.concepts and requests else 0
        found += [one for one in requests[:shared] if one not in found] + requests[shared:]
    return found


@dataclass(frozen=True)
class Requests:
    """All banks of a run: each edit's own, of composed prompts, of implicit ones, and of what is kept."""

    own: tuple[BankRequest, ...]
    composed: tuple[BankRequest, ...]
    implicit: tuple[BankRequest, ...]
    kept: tuple[BankRequest, ...]

    @classmethod
    def of(cls, group: Sequence[Erase], spec: EditSpec, neighbours: Mapping[str, Sequence[str]]) -> Requests:
        """`neighbours` are the mined words of each edit, by its id."""
        return cls(
            tuple(own_request(edit, spec.seed) for edit in group),
            tuple(request for edit in group if (request := composed_request(edit, spec))),
            tuple(request for edit in group if (request := implicit_request(edit, spec))),
            tuple(kept_requests(group, spec, neighbours)),
        )

    @property
    def every(self) -> tuple[BankRequest, ...]:
        """All of them, in the order of the lesson's rows."""
        return self.own + self.composed + self.implicit + self.kept

    def evals(self, scheduler: Mapping[str, Any]) -> int:
        """U-Net evals of sampling them all."""
        return sum(request.evals(scheduler) for request in self.every)


def round_steps(steps: int) -> list[int]:
    """The steps of each round of a robust erasure: one before the first attack, one after each."""
    return block_steps(steps, ROUNDS + 1)


def labels(edit: Erase) -> int:
    """Predictions of the base at a row that the student sampled: e_0, e_c, and with `from` the concept's."""
    return 3 if edit.from_concept else 2


def learning_evals(
    group: Sequence[Erase], keep: Sequence[BankRequest], spec: EditSpec, scheduler: Mapping[str, Any]
) -> int:
    """Evals after the banks: a forward is one, a backward two. At most, where training may stop early."""
    first = group[0]
    joint = replace(first, batch=sum(edit.batch for edit in group))
    batches = [
        *(edit.batch for edit in group),
        *(composed_batch(edit) for edit in group),
        *(edit.batch for edit in group if edit.implicit),
        *keep_batches(joint, keep),
    ]
    if first.robust:
        attacked = 3 * ATTACKED * first.batch * (first.steps - round_steps(first.steps)[0])
        attacked += 3 * first.batch * ROUNDS * ATTACKS * ATTACK_STEPS
        return 3 * first.steps * sum(batches) + attacked + _round_checks(first, batches)
    if first.refresh:
        fresh = refresh_evals(first, own_request(first, spec.seed).prompts, scheduler, labels(first))
        checks = block_check_evals(batches, first.steps, first.refresh + 1, first.held_out)
        return 3 * first.steps * sum(batches) + fresh + checks
    steps = searching_steps(first) if first.strength == "auto" else [first.steps]
    judging = judging_evals(first, spec) if first.strength == "auto" else 0
    checks = sum(check_evals(batches, count, first.held_out) for count in steps)
    return 3 * sum(steps) * sum(batches) + checks + judging


def _round_checks(edit: Erase, batches: Sequence[int]) -> int:
    """Held-out checks of all rounds, of which all but the first have the attacked prompts too."""
    first, *others = round_steps(edit.steps)
    return check_evals(batches, first, edit.held_out) + sum(
        check_evals([*batches, ATTACKED * edit.batch], count, edit.held_out) for count in others
    )
