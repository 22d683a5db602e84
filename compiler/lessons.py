"""What guide, balance and respond share: lessons for the distil engine, as plans know them.

A lesson is a bank and what the student reads at its rows. Each reading names what it reads, the prompt whose
prediction is wanted there, and how much of the recorded guidance is added to that. Trajectories and guidance
are the frozen base's; wanted predictions are those of the weights as a pass finds them, so that it builds on
the passes before it and undoes none. Nothing at the top of this module imports torch: plans are made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from compiler.bank_request import BankRequest
from compiler.guided_request import GuidedRequest
from compiler.interference import made_already
from compiler.keep import keep_requests, trajectories_of_a_concept
from compiler.passes import PassCost
from compiler.unet import training_memory
from compiler.windows import over_window
from editspec import Balance, Guide, Respond

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compiler.checkpoint import Checkpoint
    from compiler.teacher import Teacher
    from editspec import EditSpec

TaughtEdit: TypeAlias = Guide | Balance | Respond
LOADING_SECONDS = 2.0  # late imports and building the U-Net


@dataclass(frozen=True)
class Reading:
    """What the student reads at a bank's rows, and what it should predict there: `wanted` + `change` * g_t.

    `prompts` has, for each prompt of the bank, those that the student reads, and `wanted` the one whose
    prediction before training is wanted; None is the unconditional row.
    """

    name: str
    prompts: tuple[tuple[str | None, ...], ...]
    wanted: tuple[str | None, ...]
    weight: float
    batch: int
    change: float = 0.0
    guided: Guiding | None = None
    early: int = 1
    """How often the noisiest rows come, for each time that others do."""
    early_share: float = 1.0
    """Which rows these are: this share of each trajectory."""
    often: tuple[int, ...] = ()
    """How often the rows of each prompt of the bank come; once, where it is empty."""
    level: bool = False
    """Whether every timestep counts alike, however little the recorded guidance changes there."""

    @property
    def evals_each(self) -> int:
        """Evals of training on one example: a forward is one for each half, a backward two."""
        return 3 if self.guided is None else 6


@dataclass(frozen=True)
class Guiding:
    """Compare guided predictions: the other half is the empty prompt's, which should change by `empty` g.

    `halves` is how much each half counts by itself too, as a share of what terms give it by default. With 0
    they count only together: one half may make up for what the other has learned elsewhere.
    """

    scales: tuple[float, ...]
    empty: float
    halves: float = 1.0


@dataclass(frozen=True)
class Lesson:
    """A bank and the readings at its rows."""

    request: BankRequest | GuidedRequest
    readings: tuple[Reading, ...]

    @property
    def student_prompts(self) -> tuple[str, ...]:
        """Every prompt that the student reads, before training or in it, each once."""
        texts = (text for one in self.readings for group in (*one.prompts, one.wanted) for text in group)
        return tuple(dict.fromkeys(text for text in texts if text is not None))

    @property
    def wanted(self) -> tuple[tuple[str | None, ...], ...]:
        """What is predicted before training, each once."""
        found = dict.fromkeys(reading.wanted for reading in self.readings)
        if any(reading.guided for reading in self.readings):
            found[(None,) * len(self.request.prompts)] = None
        return tuple(found)

    def evals(self, scheduler_config: Mapping[str, Any]) -> int:
        """Evals before training: of the bank, and of what is wanted at each of its rows."""
        plain = self.request if isinstance(self.request, BankRequest) else self.request.plain
        return self.request.evals(scheduler_config) + len(self.wanted) * plain.rows(scheduler_config)


class Rounds(Protocol):
    """Further rounds of a training, each from what is seen of the student by then."""

    @property
    def rounds(self) -> int: ...

    @property
    def steps(self) -> int:
        """Training steps of each round."""

    @property
    def learning_rate(self) -> float: ...

    def evals(self, scheduler_config: Mapping[str, Any]) -> int:
        """What looking takes, in all rounds."""

    def look(
        self, teacher: Teacher, student: nn.Module, deltas: Mapping[str, Tensor]
    ) -> tuple[tuple[Lesson, ...], Any]:
        """The lessons of the next round, with the banks of the first ones; JSON facts of what was seen."""


def held(name: str, prompts: Sequence[str | None], weight: float, batch: int) -> Reading:
    """A reading in which nothing is to change: for each prompt of the bank, one that stays where it is."""
    return Reading(name, tuple((prompt,) for prompt in prompts), tuple(prompts), weight, batch)


def too_few(pointer: str, prompts: int, edit: TaughtEdit, shared_by: int = 1) -> list[tuple[str, str]]:
    """(pointer, message) where not each of `prompts` has a trajectory in each of `shared_by` shares."""
    needed = prompts * shared_by
    if edit.trajectories >= needed:
        return []
    return [(f"{pointer}/trajectories", f"{edit.trajectories} are too few: {needed} prompts need one each")]


def quarter(batch: int) -> int:
    """Examples a step of a branch that is only held where it was, as compiler.keep has it."""
    return -(-batch // 4)


def too_long(
    pointer: str, lessons: Sequence[Lesson], checkpoint: Checkpoint, named: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """(pointer, message) for the first prompt of the lessons, or `named` beside them, over the window."""
    prompts = [*named, *(p for one in lessons for p in (*one.request.prompts, *one.student_prompts))]
    return over_window(checkpoint, [(pointer, prompt) for prompt in dict.fromkeys(prompts)])[:1]


def lessons_cost(
    edit: TaughtEdit,
    lessons: Sequence[Lesson],
    spec: EditSpec,
    checkpoint: Checkpoint,
    targets: Sequence[str],
    together: tuple[float, ...] = (),
    rounds: Rounds | None = None,
) -> PassCost:
    """What teaching them takes; nothing of it depends on which neighbours are found."""
    every = (*lessons, *kept_lessons(edit, spec, (), together))
    evals = evals_before(every, checkpoint) + training_evals(edit, every)
    if rounds:
        evals += rounds.evals(checkpoint.config("scheduler")) + training_evals(edit, every, rounds)
    memory = training_memory(checkpoint.weights("unet").entries, checkpoint.config("unet"), targets)
    return PassCost(evals, LOADING_SECONDS, memory)


def kept_lessons(
    edit: TaughtEdit, spec: EditSpec, neighbours: Sequence[str], together: tuple[float, ...]
) -> tuple[Lesson, ...]:
    """What the spec and the edit preserve, and mined neighbours: `batch` examples a step together.

    A quarter more are of prompts that earlier edits are for: as these left them, so that they are not undone.

    With `together`, half as many in guided predictions at these scales, and neither half by itself: at high
    noise no x_t tells a preserved concept from any other, so an empty prompt that is held there cannot learn
    what it should everywhere, and one that does learn would move preserved concepts the other way.
    """
    requests = keep_requests(edit, spec, neighbours)
    batch = -(-edit.batch // max(1, len(requests)))
    lessons = []
    for place, request in enumerate(requests):
        name, prompts, weight = f"preserve {place}", request.prompts, edit.keep_weight
        if together:
            guided = replace(
                held(name, prompts, weight, -(-batch // 2)), guided=Guiding(together, 0.0, halves=0.0)
            )
            lessons.append(Lesson(request, (guided,)))
            continue
        empty = held(f"{name}, empty", (None,) * len(prompts), weight, quarter(batch))
        lessons.append(Lesson(request, (held(name, prompts, weight, batch), empty)))
    return (*lessons, *_made(edit, spec, together))


def _made(edit: TaughtEdit, spec: EditSpec, together: tuple[float, ...]) -> Iterator[Lesson]:
    prompts = made_already(edit, spec)
    if not prompts or not edit.keep_weight:
        return
    total = len(prompts) * max(1, trajectories_of_a_concept(edit) // 2)
    kept = held("made before", prompts, edit.keep_weight, quarter(edit.batch))
    if together:
        kept = replace(kept, guided=Guiding(together, 0.0, halves=0.0))
    yield Lesson(BankRequest.of(edit, spec.seed, prompts, total), (kept,))


def evals_before(lessons: Sequence[Lesson], checkpoint: Checkpoint) -> int:
    """Evals of sampling all banks anew (what the cache holds costs nothing) and of what is wanted there."""
    scheduler = checkpoint.config("scheduler")
    return sum(lesson.evals(scheduler) for lesson in lessons)


def training_evals(edit: TaughtEdit, lessons: Sequence[Lesson], rounds: Rounds | None = None) -> int:
    """Of the edit's own steps, or of those of all `rounds`: a forward is one eval, a backward two."""
    each = sum(reading.evals_each * reading.batch for lesson in lessons for reading in lesson.readings)
    return each * (rounds.rounds * rounds.steps if rounds else edit.steps)
