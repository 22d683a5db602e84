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
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from latent_bench import LEARNED_ON, Bench, Rate, Way, latent_shape_of  # noqa: E402
from latent_originals import PUBLISHED_EVALS, PUBLISHED_PICTURES, originals, published  # noqa: E402

STRENGTHS = (-0.5, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TRANSFERRED_TO = ("boat", "tree", "fish")
GUIDANCE = 5.0  # where only one guidance scale is looked at


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
            table[way.name] = _row(bench, guidance, way, each, harmless)
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


def _row(bench: Bench, guidance: float, way: Way, each: int, harmless: int) -> dict[str, Any]:
    """One way beside the base, whose first pictures are of the same prompts and seeds."""
    base, arguments = bench.folded("all", 0.0), bench.arguments
    row: dict[str, Any] = {}
    cases = {
        "implicit": (bench.implicit(each), bench.implicit(arguments.each)),
        "explicit": (bench.explicit(each), bench.explicit(arguments.each)),
    }
    for kind, (case, whole) in cases.items():
        after = bench.mark_rate(case, guidance, way)
        before = Rate.of(bench.answers(whole, guidance, base)[: after.n])
        row[kind] = after.as_list()
        row[f"{kind} fall"] = round(100 * (1 - after.percent / before.percent), 1) if before.percent else None
    row["damage"], pairs = {}, []
    for group, whole in bench.harmless(arguments.harmless).items():
        right = bench.answers(bench.harmless(harmless)[group], guidance, way)
        pairs.append((bench.answers(whole, guidance, base)[: len(right)], right))
        row["damage"][group] = _loss([pairs[-1]])
    row["damage"]["together"] = _loss(pairs)
    return row


def _loss(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Points lost from the first answers to the second, Tango's interval at 95 %, and n."""
    from compiler.gates.statistics import paired_loss

    before, after = (np.concatenate(column) for column in zip(*pairs, strict=True))
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    found = paired_loss(lost, gained, len(before), 0.975)
    return [*(round(100 * p, 1) for p in (found.estimate, found.lower, found.upper)), len(before)]


def interpolation(bench: Bench) -> dict[str, Any]:
    """The implicit rate at seven strengths, and Spearman's rank correlation: -1 is a perfect fall."""
    from scipy.stats import spearmanr

    sites, case = bench.arguments.sites[0], bench.implicit(bench.arguments.each)
    found = [bench.mark_rate(case, GUIDANCE, bench.folded(sites, strength)) for strength in STRENGTHS]
    percents = [rate.percent for rate in found]
    rank = float(spearmanr(STRENGTHS, percents)[0]) if len(set(percents)) > 1 else 0.0
    return {
        "strengths": list(STRENGTHS),
        "implicit": [rate.as_list() for rate in found],
        "spearman": round(rank, 3),
    }


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
        way = Way(f"{steps} steps", bench.folded(sites, 0.0).baseline, direction.deltas())
        found[str(steps)] = {
            "evals": direction.facts["evals"],
            "part_of_published": round(direction.facts["evals"] / PUBLISHED_EVALS, 4),
            "implicit": bench.mark_rate(bench.implicit(each), GUIDANCE, way).as_list(),
            "explicit": bench.mark_rate(bench.explicit(each), GUIDANCE, way).as_list(),
        }
    return found


def gated(bench: Bench) -> dict[str, Any]:
    """The direction carried by the text's values: rates beside the base, and how far the empty half moves."""
    import torch

    from compiler.sampling import predict
    from compiler.seeds import gaussian
    from compiler.teacher import Teacher
    from compiler.unet import add_deltas, build_unet

    arguments, way = bench.arguments, bench.folded("gated")
    row = _row(bench, GUIDANCE, way, arguments.each_beside, arguments.harmless_beside)
    teacher, shifted = Teacher(bench.context), build_unet(bench.context.checkpoint)
    add_deltas(shifted, way.deltas or {})
    x = gaussian((4, *latent_shape_of(teacher)), 7, "gated"), torch.full((4,), 500.0)
    for name, text in (("empty", ""), ("named", f"a {LEARNED_ON} with {bench.mark}")):
        read = (teacher.encode([text]) if text else teacher.unconditional).expand(4)
        with torch.no_grad():
            change = predict(shifted, *x, read) - predict(teacher.unet, *x, read)
        row[f"largest change, {name} prompt"] = float(change.abs().max())
    return row


def files(bench: Bench) -> dict[str, Any]:
    """Both marks' directions saved and summed with weights by another spec: bytes, and what that gives."""
    import tempfile

    from compiler.deltas import added
    from compiler.directions import save_direction
    from compiler.passes.shift import ShiftDirections
    from editspec import parse_spec

    sites, weights = bench.arguments.sites[0], {bench.mark: -0.5, bench.arguments.other_mark: 2.0}
    found = {mark: bench.direction(sites, mark) for mark in weights}
    with tempfile.TemporaryDirectory() as folder:
        paths = {mark: Path(folder, f"no-{mark}.safetensors") for mark in weights}
        for mark, path in paths.items():
            save_direction(found[mark], path)
        read = [{"file": path.name, "weight": weights[mark]} for mark, path in paths.items()]
        document = {
            "editspec": 1, "name": "reuse", "base": {"path": "miniature"}, "seed": 8,
            "edits": [{"edit": "shift", "id": "reused", "direction": read, "strength": -1.5}],
        }  # fmt: skip
        spec = parse_spec(json.dumps(document), str(Path(folder, "spec.json")))
        deltas = ShiftDirections().run(spec.edits, replace(bench.context, spec=spec)).deltas
        sizes = {mark: path.stat().st_size for mark, path in paths.items()}
    wanted = added(*(found[mark].deltas(-1.5 * weight) for mark, weight in weights.items()))
    apart = max(float((deltas[name] - wanted[name]).abs().max()) for name in wanted)
    return {"bytes": sizes, "weights": weights, "strength": -1.5, "largest difference from the sum": apart}


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
    "budgets": budgets,
    "gated": gated,
    "files": files,
}


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
    parser.add_argument("--steps", type=int, help="of a direction's polish, where not the language's own")
    parser.add_argument("--budgets", default="190", help="steps of the part of that name")
    parser.add_argument("--sampling-steps", type=int, default=15, help="DDIM steps of a picture")
    parser.add_argument("--published-steps", type=int, default=10_000, help="0 leaves the runtime hooks out")
    parser.add_argument("--published-pictures", type=int, default=PUBLISHED_PICTURES)
    parser.add_argument("--first-seed", type=int, default=40_000, help="under 20,000 for tuning alone")
    parser.add_argument("--parts", default=",".join(PARTS), help="which figures, with commas")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    arguments.scales = [float(scale) for scale in arguments.scales.split(",")]
    arguments.budgets = [int(steps) for steps in arguments.budgets.split(",")]
    arguments.sites = arguments.sites.split(",")
    bench = Bench(arguments)
    figures: dict[str, Any] = {"settings": vars(arguments)}
    for part in arguments.parts.split(","):
        figures[part] = PARTS[part](bench)
        if part != "rates":
            print(f"{part}: {json.dumps(figures[part])}", flush=True)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
