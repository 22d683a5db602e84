"""How near ideal students come to masked guidance, on the miniature: what training could reach at best.

SEGA and SLD add g where a mask lets it through, elementwise. An ideal student knows the concept's direction
f = e_s - e_0 exactly, at every x_t, and what a network may make of it. Errors are shares of the original's
change, in five bins of timesteps from the noisiest on, for the best mixture in each bin:

`direction` multiples of f, whatever the mask; `rectified` also max(f, 0), max(e_p - e_s, 0) and e_p - e_s;
`thresholded` f beyond .5, 1, 1.5 and 2 of its standard deviations in the sample and channel, to either side;
`sign` f where e_p < e_s, SLD's mask without its threshold. No student here is trained. In the first bin the
guidance begins, which one mixture for the whole bin cannot follow.

Usage: python benchmarks/guide_ideals.py [--first-seed 28600] [--json]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from guide import BINS, CASES, LEARNED_ON, LEARNING, held_out  # noqa: E402 - the folder is no package
from guide_bench import Bench, options, say, show  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

GUIDANCE: dict[str, dict[str, Any]] = {
    **{f"SLD {preset}": {**CASES["sld"], "preset": preset} for preset in ("weak", "medium", "strong", "max")},
    **{
        f"SEGA, threshold {part:g}": {**CASES["sega"], "threshold": part, "prompts": LEARNED_ON}
        for part in (0.0, 0.5, 0.7, 0.85, 0.9)
    },
}
BEYOND = (0.5, 1.0, 1.5, 2.0)  # standard deviations


def ideals(bench: Bench, edit: dict[str, Any]) -> dict[str, list[float]]:
    """Errors by bin of every ideal student of one guidance."""
    from compiler.effects import effect_of
    from compiler.guided_bank import GuidingTeacher
    from compiler.predictions import predictions

    context = bench.context({"edit": "guide", **LEARNING, **edit})
    built: Any = context.spec.edits[0]
    teacher = GuidingTeacher(context)
    bank = held_out(bench, context, built, built.prompts)
    every = torch.arange(len(bank))
    uncond = bank.take("uncond", every)
    safety = predictions(teacher.unet, bank, teacher.encode(tuple(effect_of(built).prompts)), [0] * len(bank))
    direction, apart = safety - uncond, bank.take("cond", every) - safety
    size = direction.flatten(2).std(2)[:, :, None, None].clamp(min=1e-12)
    scaled = direction / size
    beyond = [size * (side * scaled - part).relu() for part in BEYOND for side in (1, -1)]
    students = {
        "direction": [direction],
        "rectified": [direction, direction.relu(), apart, apart.relu()],
        "thresholded": [direction, *beyond],
        "sign": [direction * (apart < 0)],
    }
    order = bank.column("timestep").sort(descending=True, stable=True).indices
    bins = [order[len(bank) * n // BINS : len(bank) * (n + 1) // BINS] for n in range(BINS)]
    wanted = bank.take("guidance", every)
    return {
        name: [_left(wanted[here], [one[here] for one in parts]) for here in bins]
        for name, parts in students.items()
    }


def _left(wanted: Tensor, parts: list[Tensor]) -> float:
    """What the best mixture of the parts leaves, as a share of what is wanted."""
    columns = torch.stack([part.flatten() for part in parts], dim=1).double()
    goal = wanted.flatten()[:, None].double()
    left = goal - columns @ torch.linalg.lstsq(columns, goal).solution
    return round(float(left.norm() / goal.norm().clamp(min=1e-30)), 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options(parser)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    figures = {}
    for name, edit in GUIDANCE.items():
        figures[name] = ideals(bench, edit)
        say(f"{name}: {figures[name]}")
    show(figures, arguments)


if __name__ == "__main__":
    main()
