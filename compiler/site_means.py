"""Where a shift may start: how far the teacher moves the mean of every activation that a bias is added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.sampling import predict
from compiler.shift import sized
from compiler.shift_examples import Vectors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compiler.conditioning import Conditioning

PIECE_SIZE = 0.05  # root mean square of a piece: the step's length is searched afterwards


@torch.no_grad()
def site_means(
    unet: torch.nn.Module,
    names: Sequence[str],
    model_input: Tensor,
    timestep: Tensor,
    text: Conditioning,
    batch: int,
) -> Vectors:
    """Mean over samples and positions of what each bias in `names` is added to: its length, by name.

    `model_input` (n, c, h, w), `timestep` (n,), `text` n rows; takes n evals.
    """
    totals: Vectors = {}
    with _observed(unet, names, totals):
        for start in range(0, len(timestep), batch):
            here = slice(start, start + batch)
            rows = text.rows(torch.arange(len(timestep))[here])
            predict(unet, model_input[here], timestep[here], rows)
    return {name: total / len(timestep) for name, total in totals.items()}


def pieces_of(vectors: Vectors, groups: Mapping[str, Sequence[str]]) -> list[Vectors]:
    """One piece for each group of names, all of equal size; groups whose vectors are zero give none.

    Set all at once they would count twice: what moves below moves everything above. So each piece is weighed.
    """
    found = (sized({name: vectors[name] for name in names}, PIECE_SIZE) for names in groups.values())
    return [piece for piece in found if piece is not None]


@contextmanager
def _observed(unet: torch.nn.Module, names: Sequence[str], totals: Vectors) -> Iterator[None]:
    """Inside, `totals` gathers, for every named bias, sums over samples of its layer's mean output."""
    handles = []
    for name in names:
        layer = unet.get_submodule(name.removesuffix(".bias"))
        length = len(layer.get_parameter("bias"))

        def add(
            module: torch.nn.Module, _: object, output: Tensor, name: str = name, length: int = length
        ) -> None:
            channels = 1 if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm) else output.ndim - 1
            other = [axis for axis in range(1, output.ndim) if axis != channels]
            means = output.float().mean(dim=other) if other else output.float()
            totals[name] = totals.get(name, means.new_zeros(length)) + means.sum(0)

        handles.append(layer.register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
