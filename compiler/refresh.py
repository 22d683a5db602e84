"""Refreshes a bank on-policy: x_t where the student's own sampling leads, labelled by the frozen base.

Sampler and shards are the trajectory bank's; only the weights change places. Base plus upstream plus what was
learned so far draws; the base alone says what should be predicted where that leads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.bank import Bank, build_bank, join, load_bank
from compiler.blocks import block_steps
from compiler.deltas import added
from compiler.distil import Distilled, DistilSettings
from compiler.judging import changed
from compiler.noised import with_predictions
from compiler.seeds import reproducible

if TYPE_CHECKING:
    from compiler.bank_request import BankRequest
    from compiler.conditioning import Conditioning
    from compiler.passes import PassContext
    from compiler.teacher import Teacher


@dataclass(frozen=True)
class Refreshing:
    """How a bank is refreshed between `blocks` of training.

    `request` gives what is sampled after a block, `labels` what the base predicts at the new rows: column ->
    for each prompt of the request, what the base reads; None is the unconditional row. `names` are what the
    new rows' prompts are called from then on, where that is not what the student read.
    """

    blocks: int
    request: Callable[[int], BankRequest]
    labels: Callable[[BankRequest], Mapping[str, Sequence[str] | None]]
    names: Callable[[BankRequest], Sequence[str]] = lambda request: request.prompts


def train_in_blocks(
    context: PassContext,
    teacher: Teacher,
    settings: DistilSettings,
    refreshing: Refreshing,
    block: Callable[[Bank | None, DistilSettings], Distilled],
) -> Distilled:
    """Train block by block, each on the rows before it and those that the student sampled since.

    `block` trains `teacher.unet`, which is base plus upstream here and ends so, with the fresh rows so far.
    The schedule of the learning rate goes on over all blocks. Evals of sampling and labelling are counted.
    """
    student = teacher.unet
    deltas: dict[str, Tensor] = {}
    curve: dict[str, list[float]] = {}
    held_out: list[float] = []
    fresh: Bank | None = None
    spent = done_steps = 0
    with tempfile.TemporaryDirectory(prefix="excise-", ignore_cleanup_errors=True) as scratch:
        for number, steps in enumerate(block_steps(settings.steps, refreshing.blocks)):
            part = replace(
                settings,
                steps=steps,
                names=(*settings.names, f"block {number}"),
                done=done_steps,
                whole=settings.steps,
            )
            with changed(student, deltas):
                done = block(fresh, part)
            deltas = added(deltas, done.deltas)
            spent, done_steps = spent + done.evals, done_steps + steps
            held_out += done.held_out
            for name, losses in done.curve.items():
                curve.setdefault(name, []).extend(losses)
            if number + 1 < refreshing.blocks:
                folder = Path(scratch) / str(number)
                folder.mkdir()
                rows, evals = _refreshed(number, context, teacher, deltas, refreshing, folder)
                spent += evals
                fresh = rows if fresh is None else join([fresh, rows])
        return Distilled(deltas, curve, spent, held_out)


def _refreshed(
    number: int,
    context: PassContext,
    teacher: Teacher,
    deltas: Mapping[str, Tensor],
    refreshing: Refreshing,
    folder: Path,
) -> tuple[Bank, int]:
    """The rows after block `number`, and the evals that they took."""
    request = refreshing.request(number)
    unet, title = teacher.unet, f"refresh the bank, {number + 1} of {refreshing.blocks - 1}"
    with reproducible(), context.progress.task(title, request.evals(teacher.scheduler.config)) as task:
        with changed(unet, deltas):
            evals = build_bank(
                unet,
                teacher.scheduler,
                teacher.encode,
                teacher.unconditional,
                request,
                folder,
                task.advance,
            )
        bank = load_bank(folder)
        labels = refreshing.labels(request)
        read: dict[str, Conditioning] = {
            column: teacher.unconditional.expand(len(request.prompts))
            if prompts is None
            else teacher.encode(prompts)
            for column, prompts in labels.items()
        }
        with _as_base(unet, context):
            labelled = with_predictions(bank, unet, read)
    return replace(labelled, prompts=tuple(refreshing.names(request))), evals + len(read) * len(bank)


@contextmanager
def _as_base(unet: torch.nn.Module, context: PassContext) -> Iterator[None]:
    """Inside, the U-Net is the base to the last bit; then with the changes of earlier passes again."""
    weights = dict(unet.named_parameters())
    before = {name: weights[name].detach().clone() for name in context.upstream}
    base = context.checkpoint.weights("unet")
    try:
        with torch.no_grad():
            for name in before:
                weights[name].copy_(base.read(name).float())
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                weights[name].copy_(weight)
