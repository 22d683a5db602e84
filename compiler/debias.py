"""Closed-form debiasing: neutral prompts moved between their groups until they lean to none (UCE, 2024).

Where the text encoder knows a group, in the words after it, in EOS and in the padding, a neutral prompt's
embeddings c are sent to c + sum alpha_g (c_g - c). How much of each group that takes is read off the U-Net's
predictions at pure noise, which are the mixture that the model believes in:
e(x_T, neutral) = sum p(g | neutral) e(x_T, g). UCE draws and classifies pictures for this; here a few
predictions tell p, and alpha is corrected until p is the wanted shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.conditioning import Conditioning
from compiler.groups import Neutral
from compiler.sampling import predict
from compiler.solve import Solution
from compiler.tail import stops
from compiler.text import TextEncoder
from compiler.unet import config_of, examples_at_once

LONGEST_STEP = 2.0  # of alpha in one round: p is only locally linear in it
LARGEST = 8.0  # |alpha|; what a solve reaches of it is less
LEAST_REACH = 0.1  # what a round's correction is divided by, at the least


@dataclass(frozen=True)
class Tilt:
    """One neutral prompt: its embedding (window, width), and what separates each group's from it, (G, ...).

    `positions` are those that its columns stand for: from the group's place on, padding at a few stops.
    """

    hidden: Tensor
    toward: Tensor
    positions: tuple[int, ...]

    def tilted(self, alpha: Tensor) -> Tensor:
        """The embedding with `alpha` (..., G) of each group: (..., window, width)."""
        return self.hidden + torch.einsum("...g,gpd->...pd", alpha.to(self.toward), self.toward)

    @property
    def columns(self) -> Tensor:
        """The columns that a solve moves, (k, width) float64."""
        return self.hidden[list(self.positions)].double()

    def goals(self, alpha: Tensor) -> Tensor:
        """Where it sends them, (k, width) float64."""
        return self.tilted(alpha)[list(self.positions)].double()


def tilt_of(text: TextEncoder, neutral: Neutral) -> Tilt:
    """Align a neutral prompt with the same prompt under each group.

    What they begin with is the same, states included. From the group's place on, words go to themselves,
    EOS to EOS and padding to padding.
    """
    hidden, *named = text.encode([neutral.prompt, *neutral.named])
    ids, *ids_named = text.token_ids([neutral.prompt, *neutral.named])
    window, length, first = text.window, len(ids), len(ids)
    toward = []
    for states, other in zip(named, ids_named, strict=True):
        start = next(
            (at for at, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), length
        )
        first = min(first, start)
        goals = [
            at if at < start else at + len(other) - length if at < length else max(at, len(other))
            for at in range(window)
        ]
        toward.append(states[[min(goal, window - 1) for goal in goals]] - hidden)
    positions = (*range(first, length), *stops(length, window))
    return Tilt(hidden, torch.stack(toward), positions)


class Leaning:
    """Reads off, for each neutral prompt, which share of each group the U-Net believes in at pure noise."""

    def __init__(
        self,
        unet: nn.Module,
        noise: Tensor,
        timestep: float,
        neutrals: Conditioning,
        named: Sequence[Conditioning],
    ) -> None:
        """`noise` (K, channels, h, w) as the U-Net reads it; `named[i]` has a row for each group."""
        self._unet, self._noise, self._timestep = unet, noise, timestep
        self._neutrals = neutrals
        self._named = [self._predict(rows) for rows in named]
        self.evals = len(noise) * sum(len(rows) for rows in named)

    def shares(self, place: int, hidden: Tensor | None = None) -> Tensor:
        """p (n, G) of neutral prompt `place`, read as each of `hidden` (n, window, width), or as it is.

        Least squares over all noises for e = sum p_g e_g with shares that add up to 1.
        """
        row = self._neutrals.rows([place])
        if hidden is not None:
            row = row.expand(len(hidden))
            row = Conditioning(hidden, row.pooled, row.time_ids)
        found, named = self._predict(row), self._named[place]
        self.evals += len(self._noise) * len(row)
        against = (named[:-1] - named[-1]).T
        share = torch.linalg.lstsq(against, (found - named[-1]).T).solution.T
        return torch.cat([share, 1.0 - share.sum(1, keepdim=True)], dim=1)

    @torch.no_grad()
    def _predict(self, rows: Conditioning) -> Tensor:
        """Predictions for each row at all noises, flattened: (rows, K * channels * h * w) float64, CPU."""
        count, at_once = len(self._noise), examples_at_once(config_of(self._unet))
        pairs = [(row, draw) for row in range(len(rows)) for draw in range(count)]
        parts = []
        for start in range(0, len(pairs), at_once):
            read, drawn = zip(*pairs[start : start + at_once], strict=True)
            timestep = torch.full((len(read),), self._timestep, device=self._noise.device)
            parts.append(predict(self._unet, self._noise[list(drawn)], timestep, rows.rows(read)))
        return torch.cat(parts).double().reshape(len(rows), -1).cpu()


@dataclass(frozen=True)
class Debiased:
    """Changes of the best round, fp32 by tensor name, and the shares p found before and after it: (n, G).

    `leans` has the mean over prompts of the largest |p_g - wanted| before each round.
    """

    deltas: dict[str, Tensor]
    before: Tensor
    after: Tensor
    leans: tuple[float, ...]


def debias(
    leaning: Leaning,
    tilts: Sequence[Tilt],
    wanted: Tensor,
    solution: Solution,
    weights: Mapping[str, Tensor],
    show: Callable[[Mapping[str, Tensor]], None],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> Debiased:
    """Ask, correct alpha, solve again: `rounds` times asked, `rounds` - 1 times corrected.

    `weights` are the matrices as they are found, `solution` is for all columns of `tilts` in order, and
    `show` puts changes of these matrices into the U-Net that `leaning` asks.
    """
    answers = [response(leaning, place, tilt) for place, tilt in enumerate(tilts)]
    alphas = [torch.zeros_like(wanted) for _ in tilts]
    deltas = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    found: list[tuple[float, Tensor, dict[str, Tensor]]] = []
    reach, expected = 1.0, torch.zeros(len(tilts), len(wanted), dtype=torch.float64)
    for turn in range(rounds):
        shares = torch.cat([leaning.shares(place) for place in range(len(tilts))])
        if turn:
            reach = reached(shares - found[-1][1], expected)
        found.append((float((shares - wanted).abs().amax(1).mean()), shares, deltas))
        advance()
        if turn + 1 == rounds:
            break
        last = alphas
        alphas = [corrected(*known, wanted, reach) for known in zip(alphas, shares, answers, strict=True)]
        moves = [alpha - before for alpha, before in zip(alphas, last, strict=True)]
        expected = torch.stack([answer @ move for answer, move in zip(answers, moves, strict=True)])
        goals = torch.cat([tilt.goals(alpha) for tilt, alpha in zip(tilts, alphas, strict=True)]).T
        text_map = solution.text_map(goals).cpu()
        deltas = {name: (weight.double() @ text_map).float() for name, weight in weights.items()}
        show(deltas)
    _, after, best = min(found, key=lambda entry: entry[0])
    return Debiased(best, found[0][1], after, tuple(lean for lean, _, _ in found))


def response(leaning: Leaning, place: int, tilt: Tilt) -> Tensor:
    """How p answers to alpha, (G, G): d p_g / d alpha_h at alpha = 0, over a step of one half.

    Read from tilted embeddings, before any weight is changed.
    """
    groups = len(tilt.toward)
    probes = torch.cat([torch.zeros(1, groups), 0.5 * torch.eye(groups)])
    found = leaning.shares(place, tilt.tilted(probes))
    return (found[1:] - found[0]).T / 0.5


def reached(moved: Tensor, expected: Tensor) -> float:
    """Which part of an expected change (n, G) came about: ridge and preserved columns hold a solve back."""
    part = float((moved * expected).sum() / expected.square().sum().clamp(min=1e-30))
    return min(1.0, max(LEAST_REACH, part))


def corrected(alpha: Tensor, shares: Tensor, answer: Tensor, wanted: Tensor, reach: float = 1.0) -> Tensor:
    """Alpha (G,) after one step of Gauss-Newton from `shares` to the `wanted` ones, within its limits."""
    step: Tensor = torch.linalg.pinv(answer, rtol=1e-3) @ (wanted - shares) / reach
    longest = float(step.abs().max())
    if longest > LONGEST_STEP:
        step = step * (LONGEST_STEP / longest)
    return (alpha + step).clamp(-LARGEST, LARGEST)
