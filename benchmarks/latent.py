"""Figures of latent directions on the miniature: a folded shift beside its runtime originals, oracle-judged.

A direction away from a sensitive mark is learned from prompts alone and folded into biases at each of the
sites; beside it stand the base, a negative prompt, and the published h-space vector as a runtime hook
(spatial, and one number for each channel). `implicit` is the rate at which contexts draw the mark though
nobody names it, `explicit` the rate for words that name it (also rare ones that no learning prompt had),
both in percent with a Wilson interval at 95 % and n; `fall` is relative to the base on the same seeds.
`damage` is the loss of what else prompts ask for, in points, paired with the base's pictures: with Tango's
interval at 95 % and n. The other parts are what their names say.

Usage: python benchmarks/latent.py [--mark flame] [--each 12] [--scales 3,5,7.5] [--parts rates] [--json]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from latent_bench import GUIDANCE, LEARNED_ON, Bench, Way, latent_shape_of  # noqa: E402
from latent_originals import PUBLISHED_EVALS, PUBLISHED_PICTURES, originals, published  # noqa: E402
from latent_uses import files, gated, row_beside  # noqa: E402

TRANSFERRED_TO = ("boat", "tree", "fish")


def rates(bench: Bench) -> dict[str, Any]:
    """Rates and damage at every guidance scale, of the first sites at length, of all other ways in short."""
    arguments, found = bench.arguments, {}
    base, *others = arguments.sites
    for guidance in arguments.scales:
        table = {"base": _base_row(bench, guidance)}
        ways = [bench.folded(base), *(bench.folded(sites) for sites in others), *originals(bench)]
        for number, way in enumerate(ways):
            short = bool(number)
            each = arguments.each_beside if short else arguments.each
            harmless = arguments.harmless_beside if short else arguments.harmless
            table[way.name] = row_beside(bench, guidance, way, each, harmless)
            print(f"guidance {guidance:g}, {way.name}: {json.dumps(table[way.name])}", flush=True)
        found[f"{guidance:g}"] = table
    return found


def _base_row(bench: Bench, guidance: float) -> dict[str, Any]:
    base, arguments = bench.folded("all", 0.0), bench.arguments
    row: dict[str, Any] = {
        "implicit": bench.mark_rate(bench.implicit(arguments.each), guidance, base).as_list(),
        "explicit": bench.mark_rate(bench.explicit(arguments.each), guidance, base).as_list(),
    }
    harmless = bench.harmless(arguments.harmless)
    row["right"] = {
        group: bench.mark_rate(case, guidance, base).as_list() for group, case in harmless.items()
    }
    print(f"guidance {guidance:g}, base: {json.dumps(row)}", flush=True)
    return row


def interpolation(bench: Bench) -> dict[str, Any]:
    """Both rates at the strengths, with Spearman's rank correlation: -1 is a perfect fall.

    Ranks say nothing among strengths at which nothing is left, or where every picture has the mark.
    """
    from scipy.stats import spearmanr

    sites, each, strengths = bench.arguments.sites[0], bench.arguments.each, bench.arguments.strengths
    found: dict[str, Any] = {"strengths": strengths}
    for kind, case in {"implicit": bench.implicit(each), "explicit": bench.explicit(each)}.items():
        seen = [bench.mark_rate(case, GUIDANCE, bench.folded(sites, strength)) for strength in strengths]
        percents = [rate.percent for rate in seen]
        rank = float(spearmanr(strengths, percents)[0]) if len(set(percents)) > 1 else 0.0
        found[kind] = [rate.as_list() for rate in seen]
        found[f"{kind}, spearman"] = round(rank, 3)
    return found


def composition(bench: Bench) -> dict[str, Any]:
    """Two directions summed, each mark's implicit rate beside what its direction does alone."""
    from compiler.deltas import added

    other, sites, each = bench.arguments.other_mark, bench.arguments.sites[0], bench.arguments.each
    alone = {bench.mark: bench.folded(sites), other: bench.folded(sites, mark=other)}
    both = added(*(way.deltas or {} for way in alone.values()))
    together = Way("folded together", alone[other].baseline, both)
    found = {}
    for mark, way in alone.items():
        case = bench.implicit(each, mark=mark)
        ways = {"base": bench.folded(sites, 0.0), "alone": way, "together": together}
        row: dict[str, Any] = {
            name: bench.mark_rate(case, GUIDANCE, one).as_list() for name, one in ways.items()
        }
        row["apart"] = round(abs(row["alone"][0] - row["together"][0]), 1)
        found[mark] = row
    return found


def transfer(bench: Bench) -> dict[str, Any]:
    """The direction learned around one object, on three others: implicit rate before and after."""
    sites, each = bench.arguments.sites[0], bench.arguments.each_beside
    found = {}
    for name in (LEARNED_ON, *TRANSFERRED_TO):
        whole = bench.implicit(bench.arguments.each if name == LEARNED_ON else each, name)
        before, after = (bench.mark_rate(whole, GUIDANCE, bench.folded(sites, s)) for s in (0.0, 1.0))
        found[name] = {"base": before.as_list(), "folded": after.as_list()}
    return found


def budgets(bench: Bench) -> dict[str, Any]:
    """What fewer and more steps of polish give: evals, as a share of the published, and both rates."""
    sites, each, found = bench.arguments.sites[0], bench.arguments.each_beside, {}
    for steps in bench.arguments.budgets:
        direction = bench.direction(sites, steps=steps)
        deltas = direction.deltas(bench.arguments.strength)
        way = Way(f"{steps} steps", bench.folded(sites, 0.0).baseline, deltas)
        found[str(steps)] = {
            "evals": direction.facts["evals"],
            "part_of_published": round(direction.facts["evals"] / PUBLISHED_EVALS, 4),
            "implicit": bench.mark_rate(bench.implicit(each), GUIDANCE, way).as_list(),
            "explicit": bench.mark_rate(bench.explicit(each), GUIDANCE, way).as_list(),
        }
    return found


def evals(bench: Bench) -> dict[str, Any]:
    """Evals of learning each direction, beside what the authors spend, and beside this run's own original."""
    found: dict[str, Any] = {"published": PUBLISHED_EVALS}
    for sites in bench.arguments.sites:
        spent = bench.direction(sites).facts["evals"]
        found[sites] = {"evals": spent, "part_of_published": round(spent / PUBLISHED_EVALS, 4)}
    if bench.arguments.published_steps:
        found["hooks of this run"] = published(bench)[1]
    return found


def folded_equals_hook(bench: Bench) -> float:
    """Largest difference of predictions between a folded direction and hooks with the same vectors, fp32."""
    import torch

    from compiler.baselines.hspace import SiteVectors
    from compiler.sampling import predict
    from compiler.seeds import gaussian
    from compiler.teacher import Teacher
    from compiler.unet import add_deltas, build_unet

    found = bench.direction(bench.arguments.sites[0])
    teacher, folded = Teacher(bench.context), build_unet(bench.context.checkpoint)
    add_deltas(folded, found.deltas())
    channels, height, width = latent_shape_of(teacher)
    worst = 0.0
    for scale, count in ((1, 1), (1, 4), (2, 2)):
        x = gaussian((count, channels, scale * height, scale * width), 7, "equality", scale, count)
        inputs = torch.cat([x, x]), torch.full((2 * count,), 500.0)
        text = teacher.unconditional.expand(count).join(teacher.encode([f"a {LEARNED_ON}"]).expand(count))
        with torch.no_grad(), SiteVectors(found.vectors, gate=found.gate).hooked(teacher.unet):
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
    "budgets": budgets,
    "gated": gated,
    "files": files,
}


def sibling(line: str) -> dict[str, Any]:
    """The figures of another benchmark of this folder: its name and arguments, if any, as in a shell."""
    name, *arguments = shlex.split(line)
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        lines = list(running.stdout or ())
    if running.returncode:
        raise SystemExit(f"{line}: failed with {running.returncode}")
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mark", default="flame", choices=("flame", "crack", "spill"))
    parser.add_argument("--other-mark", default="crack", help="a second mark, for the composition")
    parser.add_argument("--each", type=int, default=12, help="pictures of each prompt that may draw a mark")
    parser.add_argument("--each-beside", type=int, default=6, help="the same for what stands beside")
    parser.add_argument("--harmless", type=int, default=10, help="pictures of each object; others to match")
    parser.add_argument("--harmless-beside", type=int, default=3, help="the same for what stands beside")
    parser.add_argument("--scales", default="3,5,7.5", help="guidance scales, with commas")
    parser.add_argument("--sites", default="all,mid", help="of all,decoder,mid,gated; most is of the first")
    parser.add_argument("--edit", type=json.loads, default={}, help="fields of the edit, as JSON")
    parser.add_argument("--strength", type=float, default=1.0, help="at which directions are folded")
    parser.add_argument("--strengths", default="0,0.167,0.333,0.5,0.667,0.833,1", help="of the interpolation")
    parser.add_argument("--kept-scenes", type=int, default=2, help="kept scenes of each word of other marks")
    parser.add_argument("--budgets", default="190", help="steps of the part of that name")
    parser.add_argument("--sampling-steps", type=int, default=15, help="DDIM steps of a picture")
    parser.add_argument("--published-steps", type=int, default=10_000, help="0 leaves the runtime hooks out")
    parser.add_argument("--published-pictures", type=int, default=PUBLISHED_PICTURES)
    parser.add_argument("--first-seed", type=int, default=40_000, help="under 20,000 for tuning alone")
    parser.add_argument("--parts", default=",".join(PARTS), help="which figures, with commas")
    also = "figures to add, such as 'guide sld-max --trials 36'; again for balance, respond, composed"
    parser.add_argument("--also", action="append", default=[], metavar="'NAME [ARGUMENT ...]'", help=also)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    arguments.scales = [float(scale) for scale in arguments.scales.split(",")]
    arguments.budgets = [int(steps) for steps in arguments.budgets.split(",")]
    arguments.strengths = [float(strength) for strength in arguments.strengths.split(",")]
    arguments.sites = arguments.sites.split(",")
    bench = Bench(arguments)
    figures: dict[str, Any] = {"settings": vars(arguments)}
    for part in arguments.parts.split(","):
        figures[part] = PARTS[part](bench)
        if part != "rates":
            print(f"{part}: {json.dumps(figures[part])}", flush=True)
    figures |= {line: sibling(line) for line in arguments.also}
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
