"""Does a graph compute what torch computes? Largest difference of a model, PSNR of a whole picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from exporters.onnx_graphs import Graph, Input, Precision, sizes_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from exporters.onnx_sampler import Model

    Array = np.ndarray[Any, np.dtype[Any]]

#: Largest difference allowed, absolute, or relative to the largest number where that is over 1.
LIMITS: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
#: Smallest PSNR of a whole picture, in dB.
PSNR_LIMITS: Mapping[Precision, float] = {"fp32": 45.0, "fp16": 30.0}
TIMESTEPS = (999, 1, 500)
SEED = 0


@dataclass(frozen=True)
class ModelParity:
    """One model: `max_abs` is the largest |ONNX - torch|; `scale` the largest |torch| there, at least 1.

    The reference is always torch in fp32, which reads the same inputs (rounded to fp16 where the graph is).
    """

    model: str
    precision: Precision
    cases: tuple[Mapping[str, Any], ...]
    max_abs: float
    scale: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is finite and within the limit."""
        return math.isfinite(self.max_abs) and self.max_abs <= self.limit * self.scale

    def as_dict(self) -> dict[str, Any]:
        """JSON facts; a difference that is no number is null."""
        finite = self.max_abs if math.isfinite(self.max_abs) else None
        return (
            asdict(self)
            | {"cases": [dict(case) for case in self.cases], "max_abs": finite}
            | {"passed": self.passed}
        )


@dataclass(frozen=True)
class ImageParity:
    """One whole picture, in levels of 0 to 255. `psnr` is infinite where no pixel differs."""

    precision: Precision
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    max_levels: int
    psnr: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the pictures are close enough."""
        return self.psnr >= self.limit

    def as_dict(self) -> dict[str, Any]:
        """JSON facts; the PSNR of equal pictures is null."""
        finite = self.psnr if math.isfinite(self.psnr) else None
        return asdict(self) | {"psnr": finite, "identical": self.max_levels == 0, "passed": self.passed}


def cases(graph: Graph) -> Iterator[dict[str, int]]:
    """Three sets of dynamic sizes: native; two rows, half as high; half as wide, with half the prompt."""
    native = {name: pair[1] for name, pair in graph.sizes.items()}
    half = {name: max(low, high // 2) for name, (low, high) in graph.sizes.items()}
    yield {**native, "batch": 1}
    yield {**native, "batch": 2} | {name: half[name] for name in ("height",) if name in half}
    yield {**native, "batch": 1} | {name: half[name] for name in ("width", "sequence") if name in half}


def inputs(graph: Graph, sizes: Mapping[str, int], number: int, precision: Precision) -> dict[str, Tensor]:
    """Random inputs of one case, the same ones every time, by name."""
    return {one.name: _input(one, sizes, graph.folder, number, precision) for one in graph.inputs}


def reference(graph: Graph, module: nn.Module, precision: Precision) -> list[dict[str, Array]]:
    """What the fp32 `module` answers to every case, output arrays by name."""
    import torch

    answers = []
    for number, sizes in enumerate(cases(graph)):
        values = inputs(graph, sizes, number, precision)
        widened = [value.float() if value.is_floating_point() else value for value in values.values()]
        with torch.no_grad():
            found = module(*widened)
        tensors = found if isinstance(found, tuple) else (found,)
        answers.append({name: t.numpy() for name, t in zip(graph.outputs, tensors, strict=True)})
    return answers


def compare(
    graph: Graph, model: Model, answers: Sequence[Mapping[str, Array]], precision: Precision
) -> ModelParity:
    """Run `model` on the cases and measure it against torch's `answers`."""
    import numpy as np

    worst, scale, shown = 0.0, 1.0, []
    for number, (sizes, expected) in enumerate(zip(cases(graph), answers, strict=True)):
        values = inputs(graph, sizes, number, precision)
        found = model(**{name: value.numpy() for name, value in values.items()})
        shown.append({name: list(value.shape) for name, value in values.items()})
        for name, wanted in expected.items():
            difference = (
                float(np.abs(found[name] - wanted).max()) if found[name].shape == wanted.shape else math.inf
            )
            size = max(1.0, float(np.abs(wanted).max()))
            if not math.isfinite(difference) or difference / size > worst / scale:
                worst, scale = difference, size
            if not math.isfinite(worst):
                return ModelParity(graph.folder, precision, tuple(shown), math.inf, size, LIMITS[precision])
    return ModelParity(graph.folder, precision, tuple(shown), worst, scale, LIMITS[precision])


def psnr(one: Array, other: Array) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; infinite where they are equal."""
    import numpy as np

    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255.0**2 / error) if error else math.inf


def _input(one: Input, sizes: Mapping[str, int], name: str, number: int, precision: Precision) -> Tensor:
    import torch

    from compiler.seeds import gaussian, generator

    shape = sizes_of(one.shape, sizes)
    if one.kind == "timestep":
        return torch.tensor(float(TIMESTEPS[number]))
    draw = ("onnx parity", name, one.name, number)
    if one.bound:
        drawn = torch.randint(one.bound, shape, generator=generator(SEED, *draw))
        return drawn.to(one.dtype(precision))
    return gaussian(shape, SEED, *draw).to(one.dtype(precision))
