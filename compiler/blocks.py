"""Training in blocks: between them the student samples anew, and the base says what is right there.

What that costs, and what is sampled; knows no tensors, so that plans can be made of it. (DAgger, Ross et al.
2011: a teacher's own trajectories never show where a student's lead. METHODS, section 0.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from compiler.bank_request import BankRequest, SampledEdit, unet_calls
from compiler.held_out import check_evals
from compiler.seeds import derive


class RefreshedEdit(SampledEdit, Protocol):
    """The fields of a distilled edit that may be trained in blocks."""

    @property
    def trajectories(self) -> int: ...
    @property
    def refresh(self) -> int: ...


def block_steps(steps: int, blocks: int) -> list[int]:
    """`steps` cut into `blocks` as evenly as can be."""
    return [stop - start for start, stop in pairwise(steps * k // blocks for k in range(blocks + 1))]


def refresh_request(edit: RefreshedEdit, seed: int, number: int, prompts: Sequence[str]) -> BankRequest:
    """What the student samples after block `number`: as much as the edit's own bank, from other noise.

    Further predictions are none: those of the student are no labels.
    """
    return BankRequest.of(edit, derive(seed, "refresh", number), prompts, edit.trajectories)


def refresh_evals(
    edit: RefreshedEdit, prompts: Sequence[str], scheduler_config: Mapping[str, Any], labels: int
) -> int:
    """Evals of all refreshings: sampling with the student, and `labels` predictions of the base a row."""
    if not edit.refresh:
        return 0
    request = refresh_request(edit, 0, 0, prompts)
    sampling = 2 * request.total * unet_calls(scheduler_config, request.steps)
    return edit.refresh * (sampling + labels * request.rows(scheduler_config))


def block_check_evals(batches: Sequence[int], steps: int, blocks: int, share: float) -> int:
    """The most evals that the held-out checks of all blocks can take."""
    return sum(check_evals(batches, count, share) for count in block_steps(steps, blocks))
