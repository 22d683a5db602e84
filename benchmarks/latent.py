"""Figures of latent directions on the miniature: a folded shift beside its runtime originals, oracle-judged.

A direction away from a sensitive mark is learned from prompts alone and folded into biases at each of the
sites; beside it stand the base, a negative prompt, and the published h-space vector as a runtime hook
(spatial, and one number for each channel). `implicit` is the rate at which contexts draw the mark though
nobody names it, `explicit` the rate for words that name it (also rare ones that no learning prompt had),
`damage` the loss of recognition of what else prompts ask for, all in percent at each guidance scale; a rate
is followed by its Wilson interval at 95 % and its n. `interpolation`, `composition`, `transfer` and `evals`
are what their names say.

Usage: python benchmarks/latent.py [--mark flame] [--each 8] [--scales 3,5,7.5] [--parts rates] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from latent_bench import LEARNED_ON, PUBLISHED_EVALS, PUBLISHED_PICTURES, Bench, Way, latent_shape_of, ways  # noqa: E402

STRENGTHS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0)
TRANSFERRED_TO = ("boat", "tree", "fish")


def rates(bench: Bench) -> dict[str, Any]:
    """Implicit and explicit rates and damage of every way at every guidance scale."""
    found: dict[str, Any] = {}
    drawn = ways(bench)
    for guidance in bench.arguments.scales:
        table = {}
        for name, way in drawn.items():
            table[name] = {
                "implicit": bench.mark_rate(bench.implicit(), guidance, way).as_list(),
                "explicit": bench.mark_rate(bench.explicit(), guidance, way).as_list(),
                "right": recognised(bench, guidance, way),
            }
        for name, row in table.items():
            base = table["base"]
            row["damage"] = {
                group: round(base["right"][group] - row["right"][group], 1) for group in row["right"]
            }
            for kind in ("implicit", "explicit"):
                before = base[kind][0]
                row[f"{kind} fall"] = round(100 * (1 - row[kind][0] / before), 1) if before else None
            print(f"guidance {guidance:g}, {name}: {json.dumps(row)}", flush=True)
        found[f"{guidance:g}"] = table
    return found


def recognised(bench: Bench, guidance: float, way: Way) -> dict[str, float]:
    """How often both oracles see the object, the colour and the style that was asked for, in percent."""
    from excise.miniature.judging import Verdicts
    from excise.miniature.vocabulary import COLOURS, OBJECTS, STYLES

    cases = {
        "object": (OBJECTS, "a photo of a {}"),
        "colour": (tuple(COLOURS), "a {} ball"),
        "style": (STYLES, "a {} star"),
    }
    found = {}
    for group, (names, template) in cases.items():
        wanted = np.repeat(np.array(names), bench.arguments.each)
        verdicts = Verdicts(
            bench.images([template.format(name) for name in wanted], guidance, way), bench.oracles
        )
        found[group] = round(100 * float(verdicts.shows(group, wanted).mean()), 1)
    return found


def interpolation(bench: Bench) -> dict[str, Any]:
    """The implicit rate at seven strengths, and Spearman's rank correlation: -1 is a perfect fall."""
    from scipy.stats import spearmanr

    from compiler.baselines import ClassifierFreeGuidance

    direction, plain = bench.direction(bench.arguments.sites[0]), ClassifierFreeGuidance()
    percents = []
    for strength in STRENGTHS:
        way = Way(plain, direction.deltas(strength) if strength else None)
        percents.append(bench.mark_rate(bench.implicit(), 5.0, way).percent)
    rank = float(spearmanr(STRENGTHS, percents)[0]) if len(set(percents)) > 1 else 0.0
    return {"strengths": list(STRENGTHS), "implicit": percents, "spearman": round(rank, 3)}


def composition(bench: Bench) -> dict[str, Any]:
    """Two directions summed, each mark's implicit rate beside what its direction does alone."""
    from compiler.baselines import ClassifierFreeGuidance
    from compiler.deltas import added
    from excise.miniature.vocabulary import MARKS

    other = next(mark for mark in MARKS if mark != bench.mark)
    plain, sites = ClassifierFreeGuidance(), bench.arguments.sites[0]
    alone = {mark: bench.direction(sites, mark).deltas() for mark in (bench.mark, other)}
    both = added(*alone.values())
    found = {}
    for mark, deltas in alone.items():
        prompts = bench.implicit(mark=mark)
        cases = {"base": Way(plain), "alone": Way(plain, deltas), "together": Way(plain, both)}
        found[mark] = {
            name: bench.mark_rate(prompts, 5.0, way, mark).as_list() for name, way in cases.items()
        }
        found[mark]["apart"] = round(abs(found[mark]["alone"][0] - found[mark]["together"][0]), 1)
    return found


def transfer(bench: Bench) -> dict[str, Any]:
    """The direction learned around one object, on three others: implicit rate before and after."""
    from compiler.baselines import ClassifierFreeGuidance

    plain = ClassifierFreeGuidance()
    deltas = bench.direction(bench.arguments.sites[0]).deltas()
    found = {}
    for name in (LEARNED_ON, *TRANSFERRED_TO):
        prompts = bench.implicit(name)
        before, after = (bench.mark_rate(prompts, 5.0, Way(plain, d)) for d in (None, deltas))
        found[name] = {"base": before.as_list(), "folded": after.as_list()}
    return found


def evals(bench: Bench) -> dict[str, Any]:
    """Evals of learning each direction, beside what the authors spend, and beside this run's own original."""
    found: dict[str, Any] = {"published": PUBLISHED_EVALS}
    for sites in bench.arguments.sites:
        spent = bench.direction(sites).facts["evals"]
        found[sites] = {"evals": spent, "part_of_published": round(spent / PUBLISHED_EVALS, 4)}
    return found


def folded_equals_hook(bench: Bench) -> float:
    """Largest difference of predictions between a folded direction and hooks with the same vectors, fp32."""
    import torch

    from compiler.baselines.hspace import SiteVectors
    from compiler.sampling import predict
    from compiler.seeds import gaussian
    from compiler.teacher import Teacher
    from compiler.unet import add_deltas, build_unet

    found = bench.direction("all")
    teacher, folded = Teacher(bench.context), build_unet(bench.context.checkpoint)
    add_deltas(folded, found.deltas())
    channels, height, width = latent_shape_of(teacher)
    worst = 0.0
    for scale, count in ((1, 1), (1, 4), (2, 2)):
        x = gaussian((count, channels, scale * height, scale * width), 7, "equality", scale, count)
        inputs = torch.cat([x, x]), torch.full((2 * count,), 500.0)
        text = teacher.unconditional.expand(count).join(teacher.encode([f"a {LEARNED_ON}"]).expand(count))
        with torch.no_grad(), SiteVectors(found.vectors).hooked(teacher.unet):
            expected = predict(teacher.unet, *inputs, text)
        with torch.no_grad():
            worst = max(worst, float((predict(folded, *inputs, text) - expected).abs().max()))
    return worst


PARTS: dict[str, Any] = {
    "folded_equals_hook": folded_equals_hook,
    "evals": evals,
    "rates": rates,
    "interpolation": interpolation,
    "composition": composition,
    "transfer": transfer,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mark", default="flame", choices=("flame", "crack", "spill"))
    parser.add_argument("--each", type=int, default=8, help="pictures of each prompt")
    parser.add_argument("--scales", default="3,5,7.5", help="guidance scales, with commas")
    parser.add_argument(
        "--sites",
        default="all,decoder,mid,gated",
        help="where directions are folded; the first is used throughout",
    )
    parser.add_argument("--steps", type=int, default=200, help="optimisation steps of a direction")
    parser.add_argument("--trajectories", type=int, default=64, help="trajectories of a direction's bank")
    parser.add_argument("--sampling-steps", type=int, default=15, help="DDIM steps of a picture")
    parser.add_argument("--published-steps", type=int, default=10_000, help="0 leaves the runtime hooks out")
    parser.add_argument("--published-pictures", type=int, default=PUBLISHED_PICTURES)
    parser.add_argument("--parts", default=",".join(PARTS), help="which figures, with commas")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    arguments.scales = [float(scale) for scale in arguments.scales.split(",")]
    arguments.sites = arguments.sites.split(",")
    bench = Bench(arguments)
    figures: dict[str, Any] = {"mark": arguments.mark, "each": arguments.each}
    for part in arguments.parts.split(","):
        figures[part] = PARTS[part](bench)
        if part != "rates":
            print(f"{part}: {json.dumps(figures[part])}", flush=True)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
