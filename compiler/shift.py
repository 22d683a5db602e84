"""The shift engine: finds vectors which, added to a U-Net, make plain sampling go where a teacher goes.

A vector added to a bias acts in both halves of classifier-free guidance, so learned in the text half alone
and folded it would be w times too weak. It is therefore learned as it will be used: the guided prediction
must change by what the teacher changes it, at several guidance scales. First a Gauss-Newton step in a small
subspace (means of the wanted changes of activations, block by block, or gradients) with a line search, then a
short polish in small batches. (METHODS, section 5; Li et al. 2024.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.carriers import Carrier
from compiler.conditioning import Conditioning
from compiler.distil import Diverged, falling
from compiler.seeds import reproducible
from compiler.shift_cost import GRADIENTS, SCALES_OF_STEP
from compiler.shift_examples import Examples, Part, ShiftSettings, Student, Tally, Vectors, drawn, in_parts
from compiler.terms import pointwise_loss

DAMPING = 1e-2  # each column of the Gauss-Newton step against its own size
STEP_SIZE = 0.01  # root mean square of a gradient piece: small against biases, large against rounding


@dataclass(frozen=True)
class Learned:
    """fp32 vectors by tensor name, on the CPU; the loss at zero, after the search and at the end; evals.

    `measured` is over the fixed examples, `curve` holds each part's mean loss of each step.
    """

    vectors: Vectors
    measured: dict[str, float]
    curve: dict[str, list[float]]
    evals: int


def learn(
    unet: torch.nn.Module,
    carrier: Carrier,
    prompts: Conditioning,
    parts: Sequence[Part],
    settings: ShiftSettings,
    pieces: Sequence[Vectors] = (),
    advance: Callable[[int], None] = lambda evals: None,
) -> Learned:
    """Learn vectors for `carrier`, from `pieces` of a start or else gradients; leaves `unet` as it was.

    Row 0 of `prompts` is the unconditional one. The same arguments give the same bits. Raises `Diverged`
    when the loss is not finite.
    """
    tally = Tally(advance)
    student = Student(unet, carrier, prompts.rows([0]))
    with reproducible():
        gradients = 0 if pieces else GRADIENTS
        found, start = _subspace_step(student, prompts, parts, settings, pieces, tally, gradients)
        ends, curve = _polish(student, prompts, parts, settings, found, tally)
        # Where little is to be gained the polish is a random walk: what is kept is measured, not hoped for.
        examples = drawn(parts, prompts, settings, 0, "fixed")
        losses = [_loss(student, end, examples, tally) for end in ends]
        best = min(range(len(ends)), key=losses.__getitem__)
        vectors, loss = (
            (ends[best], losses[best])
            if losses[best] < settings.slack * start["start"]
            else (found, start["start"])
        )
    measured = {**start, "end": loss}
    return Learned({name: vector.cpu() for name, vector in vectors.items()}, measured, curve, tally.evals)


def fit(
    unet: torch.nn.Module,
    carrier: Carrier,
    prompts: Conditioning,
    parts: Sequence[Part],
    settings: ShiftSettings,
    pieces: Sequence[Vectors],
) -> Learned:
    """The best combination of `pieces` alone, without gradients or polish: of one, a line search."""
    tally = Tally(lambda evals: None)
    student = Student(unet, carrier, prompts.rows([0]))
    with reproducible():
        found, start = _subspace_step(student, prompts, parts, settings, pieces, tally, gradients=0)
    return Learned({name: vector.cpu() for name, vector in found.items()}, start, {}, tally.evals)


def _subspace_step(
    student: Student,
    prompts: Conditioning,
    parts: Sequence[Part],
    settings: ShiftSettings,
    pieces: Sequence[Vectors],
    tally: Tally,
    gradients: int,
) -> tuple[Vectors, dict[str, float]]:
    """One damped Gauss-Newton step in the span of the pieces, its length searched on the true loss."""
    columns = [*pieces, *_gradient_pieces(student, prompts, parts, settings, tally, gradients)]
    examples = drawn(parts, prompts, settings, 0, "fixed")
    at_zero = _all_residuals(student, student.zeros(), examples, tally)
    before = float(at_zero.square().sum())
    effects = [_all_residuals(student, piece, examples, tally) - at_zero for piece in columns]
    usable = [
        number for number, effect in enumerate(effects) if bool(effect.isfinite().all()) and effect.any()
    ]
    if not usable:
        return student.zeros(), {"zero": before, "start": before}
    matrix = torch.stack([effects[number].flatten() for number in usable], dim=1).double()
    square = matrix.T @ matrix
    damping = DAMPING * torch.eye(len(square), dtype=square.dtype, device=square.device)
    # A column's natural size says nothing: damp each against its own.
    sizes = square.diagonal().sqrt()
    square = square / torch.outer(sizes, sizes)
    wanted = -(matrix.T @ at_zero.flatten().double()) / sizes
    weights = torch.linalg.solve(square + damping, wanted) / sizes
    step = {
        name: sum((float(w) * columns[k][name] for w, k in zip(weights, usable, strict=True)), zero)
        for name, zero in student.zeros().items()
    }
    best, lowest = student.zeros(), before
    for scale in SCALES_OF_STEP:
        scaled = {name: scale * vector for name, vector in step.items()}
        loss = _loss(student, scaled, examples, tally)
        if loss < lowest:
            best, lowest = scaled, loss
    return best, {"zero": before, "start": lowest}


def _gradient_pieces(
    student: Student,
    prompts: Conditioning,
    parts: Sequence[Part],
    settings: ShiftSettings,
    tally: Tally,
    count: int,
) -> list[Vectors]:
    """Gradients at zero of some minibatches, each scaled to `STEP_SIZE`, and the signs of their mean."""
    found = []
    for number in range(count):
        vectors = {name: zero.requires_grad_(True) for name, zero in student.zeros().items()}
        _accumulate(student, vectors, drawn(parts, prompts, settings, number, "gradient"), settings, tally)
        found.append({name: _gradient(vector) for name, vector in vectors.items()})
    if not found:
        return []
    mean = {name: torch.stack([one[name] for one in found]).mean(0).sign() for name in found[0]}
    return [scaled for one in (*found, mean) if (scaled := sized(one, STEP_SIZE)) is not None]


def sized(vectors: Mapping[str, Tensor], size: float) -> Vectors | None:
    """The vectors scaled so that the root mean square of all their elements is `size`; None for all zeros."""
    energy = sum(float(vector.square().sum()) for vector in vectors.values())
    count = sum(vector.numel() for vector in vectors.values())
    if not energy or not math.isfinite(energy):
        return None
    return {name: vector * (size / math.sqrt(energy / count)) for name, vector in vectors.items()}


def _polish(
    student: Student,
    prompts: Conditioning,
    parts: Sequence[Part],
    settings: ShiftSettings,
    found: Vectors,
    tally: Tally,
) -> tuple[list[Vectors], dict[str, list[float]]]:
    """Adam from where the line search ended: where it ends, the mean of its second half, and mean losses."""
    vectors = {name: vector.clone().requires_grad_(True) for name, vector in found.items()}
    mean = {name: torch.zeros_like(vector) for name, vector in found.items()}
    curve: dict[str, list[float]] = {part.name: [] for part in parts}
    optimiser = torch.optim.Adam(list(vectors.values()), lr=settings.learning_rate)
    second_half = settings.steps // 2
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * falling(settings.schedule, step / settings.steps)
        optimiser.zero_grad(set_to_none=True)
        losses = _accumulate(
            student, vectors, drawn(parts, prompts, settings, step, "polish"), settings, tally
        )
        at = 0
        for part in parts:
            loss = float(losses[at : at + part.batch].mean())
            at += part.batch
            if not math.isfinite(loss):
                raise Diverged(part.name, step)
            curve[part.name].append(loss)
        optimiser.step()
        if step >= second_half:
            for name, vector in vectors.items():
                mean[name] += vector.detach() / (settings.steps - second_half)
    return [{name: vector.detach() for name, vector in vectors.items()}, mean], curve


def _accumulate(
    student: Student, vectors: Vectors, examples: Examples, settings: ShiftSettings, tally: Tally
) -> Tensor:
    """Add the loss's gradient to the vectors, in parts that fit the memory; each example's loss (n,)."""
    found = []
    for part in in_parts(student, examples):
        residuals = student.residuals(vectors, part)
        loss = pointwise_loss(residuals, settings.loss).mean(dim=(2, 3, 4)).sum(0)
        (loss * part.share).sum().backward()
        found.append(loss.detach())
        tally(3 * student.halves * len(part.share))
    return torch.cat(found)


@torch.no_grad()
def _all_residuals(
    student: Student, vectors: Mapping[str, Tensor], examples: Examples, tally: Tally
) -> Tensor:
    """Residuals of all examples, (n, kinds, channels, h, w); their squares sum to the loss."""
    found = []
    for part in in_parts(student, examples):
        residuals = student.residuals(vectors, part).transpose(0, 1)
        share = (part.share / residuals[0, 0].numel()).sqrt()
        found.append(residuals * share[:, None, None, None, None])
        tally(student.halves * len(part.share))
    return torch.cat(found)


def _loss(student: Student, vectors: Mapping[str, Tensor], examples: Examples, tally: Tally) -> float:
    """The squared loss of the examples; infinite where it is no number."""
    loss = float(_all_residuals(student, vectors, examples, tally).square().sum())
    return loss if math.isfinite(loss) else math.inf


def _gradient(vector: Tensor) -> Tensor:
    return torch.zeros_like(vector) if vector.grad is None else vector.grad.detach()
