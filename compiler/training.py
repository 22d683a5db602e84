"""What the distilled passes share when they train: settings, progress, and a readable failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from compiler.conditioning import Conditioning
from compiler.distil import Distilled, DistilSettings, Diverged, distil, summary
from compiler.precision import Precision, rounds
from compiler.sampling import predict
from compiler.terms import Loss, Term
from compiler.unet import config_of, examples_at_once
from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.bank import Bank
    from compiler.passes import PassContext
    from compiler.teacher import Teacher


class TrainedEdit(Protocol):
    """The fields with which a distilled edit says how it is trained."""

    @property
    def id(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def loss(self) -> Loss: ...
    @property
    def schedule(self) -> Any: ...
    @property
    def ema(self) -> float: ...
    @property
    def held_out(self) -> float: ...
    @property
    def precision(self) -> Precision: ...


def settings_of(edit: TrainedEdit, context: PassContext, *names: str) -> DistilSettings:
    """The engine's settings from an edit; `names` name the draw of its batches."""
    # The published schedule, where it trains here at all, keeps its rate and its fp32.
    published = edit.schedule == "published"
    return DistilSettings(
        edit.steps,
        edit.learning_rate,
        context.seed,
        names,
        edit.loss,
        "constant" if published else edit.schedule,
        edit.ema,
        edit.held_out,
        bfloat16=not published and rounds(edit.precision, context.device),
    )


def train(
    context: PassContext,
    student: torch.nn.Module,
    names: Sequence[str],
    prompts: Conditioning,
    terms: Sequence[Term],
    settings: DistilSettings,
    *,
    pointer: str,
    title: str,
    evals: int,
) -> Distilled:
    """`distil` with its progress shown; `evals` is what it takes at most.

    Raises InputError at `pointer`, the edit's place in the spec, where training diverges.
    """
    with context.progress.task(title, evals) as task:
        try:
            return distil(student, names, prompts, terms, settings, task.advance)
        except Diverged as error:
            where, what = f"{pointer}/learning_rate", f"training diverged: {error}"
            raise InputError(where, what, "choose a smaller learning_rate") from error


def record_of(done: Distilled) -> dict[str, Any]:
    """JSON facts of a training: each term's loss curve, and that of the held-out examples."""
    checks = {"held_out_loss": [float(f"{loss:.5g}") for loss in done.held_out]} if done.held_out else {}
    return {"evals_of_training": done.evals, "loss": summary(done.curve), **checks}


def numbered(texts: Sequence[str], teacher: Teacher) -> tuple[Conditioning, dict[str, int]]:
    """What the student reads for `texts`, row 0 being the unconditional one, and each text's row."""
    distinct = tuple(dict.fromkeys(texts))
    rows = teacher.unconditional.join(teacher.encode(distinct)) if distinct else teacher.unconditional
    return rows, {text: place + 1 for place, text in enumerate(distinct)}


def own_prediction(
    student: torch.nn.Module, bank: Bank, prompts: Conditioning, number: Mapping[int, int]
) -> Callable[[Tensor], Tensor]:
    """A target: what the student itself predicts, as it is by then, for another prompt; no gradient.

    `number` gives the row of `prompts` for each of the bank's prompts. Takes one eval for each example.
    """
    prompt = bank.column("prompt").tolist()
    batch = 2 * examples_at_once(config_of(student))

    @torch.no_grad()
    def target(rows: Tensor) -> Tensor:
        device = prompts.hidden.device
        found = []
        for part in rows.split(batch):
            x, t = bank.take("model_input", part).to(device), bank.take("timestep", part).to(device)
            read = prompts.rows([number[prompt[row]] for row in part.tolist()])
            found.append(predict(student, x, t, read))
        return torch.cat(found)

    return target
