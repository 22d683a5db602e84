"""Attacks on a student while it is trained: embeddings that no word has, found to bring the concept back.

A learned token stands where the concept's own tokens stood (textual inversion, Gal et al. 2023; as rounds of
an erasure: STEREO, Srivatsan et al. 2025); a soft prefix stands before the whole prompt (AdvUnlearn, Zhang et
al. 2024). Both minimise the distance between the student's prediction and the base's for the concept, at x_t
where the base was drawing it: white box, gradients through the U-Net and the text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from compiler.conditioning import Conditioning
from compiler.sampling import predict
from compiler.seeds import epoch_batch, gaussian, reproducible
from compiler.unet import config_of, examples_at_once, recomputes, recomputing

if TYPE_CHECKING:
    from compiler.bank import Bank
    from compiler.text import TextEncoder

Way: TypeAlias = Literal["token", "prefix"]

WAYS: tuple[Way, ...] = ("token", "prefix")
PREFIX_TOKENS = 2
STEPS = 20
# Of Adam, as a share of the size of a word's embedding: a step moves a coordinate by at most so much.
RATE = 0.2


@dataclass(frozen=True)
class Attack:
    """What an attack found: a row for each attacked prompt, by each restart, and how near the base it came.

    `before` and `after` are mean squared distances to the base's predictions, at the start and at the end.
    """

    way: Way
    rows: Conditioning
    before: float
    after: float


@dataclass(frozen=True)
class Victim:
    """What is attacked: prompts that name the concept, and where the base draws it.

    `rows` (n,) are rows of `bank`; `place` (n,) says which of `prompts` each belongs to. `read` has the
    prompts' own rows, of which SDXL's pooled text and sizes stay as they are.
    """

    concept: str
    prompts: tuple[str, ...]
    read: Conditioning
    bank: Bank
    rows: Tensor
    place: Tensor


def attack(
    student: torch.nn.Module,
    text: TextEncoder,
    victim: Victim,
    way: Way,
    *,
    batch: int,
    seed: int,
    names: tuple[str | int, ...] = (),
    steps: int = STEPS,
    restarts: int = 1,
    advance: Callable[[int], None] = lambda evals: None,
) -> Attack:
    """Learn embeddings against `student` as it is; `steps` * `batch` * 3 evals. The student stays as it was.

    The same embeddings serve all prompts. From several random starts there are several, which share the
    batch: for the same evals more ways back are found, each less exactly. The same arguments give the same
    bits.
    """
    draw = ("attack", way, *names)
    soft = _start(text, victim, way, seed, draw, restarts)
    rate = RATE * float(soft.square().mean().sqrt())
    recomputed = recomputing(student, recomputes(config_of(student)))
    with reproducible(), torch.enable_grad(), recomputed:
        learned = soft.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([learned], lr=rate)
        losses = []
        for step in range(steps):
            chosen = epoch_batch(len(victim.rows), batch, step, seed, *draw)
            optimiser.zero_grad(set_to_none=True)
            losses.append(_distance(student, text, victim, way, learned, chosen))
            optimiser.step()
            advance(3 * batch)
    with torch.no_grad():
        rows = _read(text, victim, way, learned)
    few = max(1, steps // 4)
    return Attack(way, rows, sum(losses[:few]) / few, sum(losses[-few:]) / few)


def _distance(
    student: torch.nn.Module, text: TextEncoder, victim: Victim, way: Way, learned: Tensor, chosen: Tensor
) -> float:
    """Mean squared distance to the base for the chosen rows; adds its gradient to `learned`."""
    device = learned.device
    total = 0.0
    turns = torch.arange(len(chosen)) % len(learned) * len(victim.prompts)
    size = examples_at_once(config_of(student))
    for part, turn in zip(chosen.split(size), turns.split(size), strict=True):
        rows = victim.rows[part]
        read = _read(text, victim, way, learned).rows(turn + victim.place[part])
        x, t = victim.bank.take("model_input", rows).to(device), victim.bank.take("timestep", rows).to(device)
        wanted = victim.bank.take("cond", rows).to(device)
        loss = (predict(student, x, t, read) - wanted).square().mean() * (len(part) / len(chosen))
        loss.backward()
        total += float(loss.detach())
    return total


def _start(
    text: TextEncoder, victim: Victim, way: Way, seed: int, draw: tuple[str | int, ...], restarts: int
) -> Tensor:
    """Where the search begins, (restarts, tokens, width of all encoders): the mean word, moved at random."""
    start, stop = text.subject_span(victim.prompts[0], victim.concept)
    count = stop - start if way == "token" else PREFIX_TOKENS
    tables = [part.input_embeddings for part in text.parts]
    width = sum(table.shape[1] for table in tables)
    noise = gaussian((restarts, count, width), seed, *draw, "start").to(tables[0].device)
    mean = torch.cat([table.mean(0) for table in tables]).float()
    spread = torch.cat([table.float().std(0) for table in tables])
    return mean + 0.5 * spread * noise


def _read(text: TextEncoder, victim: Victim, way: Way, soft: Tensor) -> Conditioning:
    """What the U-Net reads for the victim's prompts with soft embeddings (restarts, tokens, width) in them.

    All prompts with the first restart's, then with the next one's.
    """
    states, at = [], 0
    for part in text.parts:
        ids, mask = part.padded(victim.prompts)
        width = part.input_embeddings.shape[1]
        own = soft[..., at : at + width].to(part.input_embeddings.dtype)
        at += width
        words = part.input_embeddings[ids]
        embedded = torch.stack(
            [
                _placed(words[k], one, way, _span(text, victim, k))
                for one in own
                for k in range(len(victim.prompts))
            ]
        )
        mask = None if mask is None else mask.repeat(len(soft), 1)
        states.append(part.states_of(embedded, mask if way == "token" else _longer(mask, soft.shape[1])))
    hidden = torch.cat(states, dim=-1) if len(states) > 1 else states[0]
    read = victim.read.rows([*range(len(victim.prompts))] * len(soft))
    return replace(read, hidden=hidden.to(read.hidden.dtype))


def _span(text: TextEncoder, victim: Victim, number: int) -> tuple[int, int]:
    return text.subject_span(victim.prompts[number], victim.concept)


def _placed(words: Tensor, soft: Tensor, way: Way, span: tuple[int, int]) -> Tensor:
    """One prompt's embeddings (window, width): the concept's tokens replaced, or a prefix after BOS."""
    if way == "token":
        return torch.cat([words[: span[0]], soft, words[span[1] :]])
    return torch.cat([words[:1], soft, words[1 : len(words) - len(soft)]])


def _longer(mask: Tensor | None, count: int) -> Tensor | None:
    """The mask (n, window) of prompts that are `count` tokens longer."""
    return None if mask is None else torch.cat([mask[:, :1].expand(-1, count), mask[:, :-count]], dim=1)


def join(rows: Sequence[Conditioning]) -> Conditioning:
    """All rows in order."""
    first, *rest = rows
    for other in rest:
        first = first.join(other)
    return first
