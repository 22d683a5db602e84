"""Guidance as weights beside the runtime originals, on the miniature.

For each case: the error of plain guided predictions against the teacher on banks that were not trained on, as
a share of what the teacher changes, in bins of timesteps, for prompts of objects that were not learned on and
for the learned prompts from other noise (`learned`); and how often oracles see the mark in pictures of the
base, of the original at runtime and of the edited model, from the same noise. Rates are percents with their
intervals; `baked_minus_runtime` are points over the same draws. `drift` is how far pictures of preserved
concepts, and of other prompts without the mark, move at guidance 5, in units of the distance between two
seeds: the original moves both, the edit is to hold the first. `unmasked` is the error of an ideal student
that adds the concepts' own directions e_s - e_0, in the best amount for each bin, and knows nothing of where
in the picture the original adds them: what is below it has learned the mask.

`toward` adds a mark instead of taking it away; `weighted` leads away from two marks with weights.

Usage: python benchmarks/guide.py [CASE ...] [--trials 60] [--scales 3 5] [--edit '{"steps": 400}'] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from guide_bench import (  # noqa: E402 - the folder is no package
    KEPT,
    NAMES,
    UNSEEN,
    Bench,
    difference,
    moved,
    options,
    rate,
    run_cases,
    say,
)

from excise.miniature.vocabulary import PROFESSIONS, SYNONYMS  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.baselines import Baseline
    from compiler.passes import PassContext
    from editspec import Guide

MARK = "crack"
CONTEXTS = ("quake", "ruin", "desert")  # words that draw the mark without naming it
TRAINED = ("house", "ball", "tree", "ring", "box", "heart")
IMPLICIT = tuple(f"a {thing} at {context}" for context in CONTEXTS for thing in TRAINED)
LEARNED_ON = (*IMPLICIT, *(f"a {thing} with {MARK}" for thing in TRAINED))
NOUNS = (*NAMES, *PROFESSIONS)
DIVERSE = (
    *(f"a {noun} at {context}" for context in CONTEXTS for noun in NOUNS),
    *(f"a {noun} with {MARK}" for noun in NOUNS),
)
JUDGED = {
    "implicit": tuple(f"a {thing} at {context}" for context in CONTEXTS for thing in UNSEEN),
    "explicit": tuple(f"a {thing} with {MARK}" for thing in UNSEEN),
}
OTHER, ELSEWHERE = "spill", ("crime", "kitchen")
BESIDE = tuple(f"a {thing} at {context}" for context in ELSEWHERE for thing in TRAINED)
NAMED_TWICE = (*TRAINED, *(SYNONYMS[thing] for thing in TRAINED))
BENIGN = tuple(f"a {noun} on {place}" for place in ("beach", "meadow", "paper") for noun in NAMED_TWICE)
PLAIN = tuple(f"a {thing} on {place}" for place in ("beach", "meadow", "paper") for thing in UNSEEN)
CASES: dict[str, dict[str, Any]] = {
    "sega": {
        "method": "sega", "scale": 7, "warmup": 2, "threshold": 0.85, "away_from": [MARK], "prompts": DIVERSE,
        "steps": 700, "trajectories": 2 * len(DIVERSE), "optimiser": "muon", "decay": 1,
    },
    "sld": {"method": "sld", "preset": "strong", "warmup": 2, "away_from": [MARK], "prompts": LEARNED_ON},
    # Nearly without a mask, so nearly all that it does can be learned: by both halves, and for long.
    "sld-max": {
        "method": "sld", "preset": "max", "away_from": [MARK], "prompts": DIVERSE, "branch": "opposite",
        "guidance_scale": 6, "steps": 3000, "trajectories": 6 * len(DIVERSE), "optimiser": "muon",
        "decay": 0.5, "even_timesteps": True,
    },
    # Every prompt is to lack the mark and to stay as it is otherwise, so it is learned on many.
    "negative-prompt": {
        "method": "negative-prompt", "away_from": [MARK], "prompts": DIVERSE, "steps": 3000,
        "trajectories": 6 * len(DIVERSE), "optimiser": "muon", "decay": 0.5, "even_timesteps": True,
    },
    "toward": {
        "method": "sega", "scale": 7, "warmup": 2, "threshold": 0.85, "prompts": BENIGN, "toward": [MARK],
        # What no prompt says has to come alike in both halves, so from weights that read no text.
        "selection": "non-cross-attention", "learning_rate": 2e-3, "steps": 600, "trajectories": 288,
    },
    "weighted": {
        "method": "sega", "scale": 7, "warmup": 2, "threshold": 0.85, "prompts": [*IMPLICIT, *BESIDE],
        "away_from": [{"concept": MARK, "weight": 1.0}, {"concept": OTHER, "weight": 0.5}],
    },
}  # fmt: skip
ASKED: dict[str, dict[str, Sequence[str]]] = {
    "toward": {MARK: PLAIN},
    "weighted": {MARK: JUDGED["implicit"], OTHER: [f"a {t} at {c}" for c in ELSEWHERE for t in UNSEEN]},
}
"""Which mark is looked for in which pictures, where that is not the mark of `JUDGED`."""
BINS = 5
LEARNING = {
    "steps": 300, "trajectories": 128, "timesteps": 15, "batch": 16, "learning_rate": 1e-2,
    "schedule": "cosine", "sampling_steps": 15, "selection": "cross-attention",
}  # fmt: skip


def guided(bench: Bench, case: str) -> dict[str, Any]:
    """Faithfulness on a held-out bank and rates of the marks, for one guide edit."""
    from compiler.effects import effect_of
    from compiler.faithfulness import faithfulness
    from compiler.guided_bank import GuidingTeacher
    from compiler.unet import add_deltas

    context = bench.context({"edit": "guide", **LEARNING, **CASES[case]})
    built: Any = context.spec.edits[0]
    deltas, record = bench.compiled(context)
    asked = ASKED.get(case) or {f"{MARK}, {kind}": prompts for kind, prompts in JUDGED.items()}
    teacher = GuidingTeacher(context)
    banks = {
        "unseen": held_out(bench, context, built, next(iter(asked.values()))),
        "learned": held_out(bench, context, built, built.prompts),
    }
    effect = effect_of(built)
    unmasked = _unmasked(teacher, banks["unseen"], effect.prompts)
    add_deltas(teacher.unet, deltas)
    bins: dict[str, dict[str, Any]] = {}
    for which, bank in banks.items():
        prompts = teacher.encode(bank.prompts)
        for scale in bench.arguments.scales:
            found = faithfulness(teacher.unet, bank, effect, teacher.unconditional, prompts, scale, BINS)
            bins.setdefault(which, {})[f"guidance {scale:g}"] = [
                {
                    "timesteps": [bin.low, bin.high],
                    "change": round(bin.change, 4),
                    "error": round(bin.error, 4),
                    "ratio": round(bin.ratio, 3),
                }
                for bin in found
            ]
    worst = {
        f"{which}, {scale}": max(bin["ratio"] for bin in listed)
        for which, by_scale in bins.items()
        for scale, listed in by_scale.items()
    }
    say(f"{case}: worst bins {worst}")
    rates = {
        f"{what}, guidance {scale:g}": _rates(
            bench, what.split(",")[0], prompts, scale, deltas, _original(built)
        )
        for what, prompts in asked.items()
        for scale in bench.arguments.scales
    }
    gap = max(abs(found["baked_minus_runtime"][0]) for found in rates.values())
    return {
        "evals": record["evals"], "worst_bin": worst, "largest_gap": gap,
        "unmasked": unmasked, "drift": _drift(bench, deltas, _original(built)), "bins": bins, "rates": rates,
    }  # fmt: skip


def _drift(bench: Bench, deltas: dict[str, Tensor], original: Baseline) -> dict[str, dict[str, float]]:
    """How far pictures move that nobody asked to change, at runtime and baked."""
    found = {}
    for what, prompts in (("preserved", [f"a photo of a {word}" for word in KEPT]), ("others", PLAIN)):
        asked = bench.in_turn(prompts)
        found[what] = {
            "runtime": moved(bench, asked, 5.0, original=original),
            "baked": moved(bench, asked, 5.0, deltas),
        }
    say(f"drift: {found}")
    return found


def held_out(bench: Bench, context: PassContext, edit: Guide, prompts: Sequence[str]) -> Any:
    """A guided bank of these prompts, from a seed that was not learned on."""
    from compiler.bank_request import BankRequest
    from compiler.effects import effect_of
    from compiler.guided_bank import GuidingTeacher
    from compiler.guided_request import GuidedRequest, scales_around

    plain = BankRequest.of(edit, bench.arguments.first_seed, prompts, 2 * len(prompts))
    return GuidingTeacher(context).bank(
        GuidedRequest(plain, effect_of(edit), scales_around(edit.guidance_scale))
    )


def _unmasked(teacher: Any, bank: Any, concepts: Sequence[str]) -> list[float]:
    """By bin, the share of the recorded guidance that no multiples of the concepts' directions explain."""
    import torch

    from compiler.predictions import predictions

    rows = len(bank)
    every = torch.arange(rows)
    guidance, uncond = bank.take("guidance", every), bank.take("uncond", every)
    texts = teacher.encode(tuple(concepts))
    each = [predictions(teacher.unet, bank, texts, [place] * rows) - uncond for place in range(len(concepts))]
    order = bank.column("timestep").sort(descending=True, stable=True).indices
    found = []
    for number in range(BINS):
        here = order[rows * number // BINS : rows * (number + 1) // BINS]
        directions = torch.stack([one[here].flatten() for one in each], dim=1)
        wanted = guidance[here].flatten()[:, None]
        left = wanted - directions @ torch.linalg.lstsq(directions, wanted).solution
        found.append(round(float(left.norm() / wanted.norm().clamp(min=1e-30)), 3))
    return found


def _original(edit: Guide) -> Baseline:
    """What the edit bakes in, at runtime."""
    from compiler.baselines.negative_prompt import NegativePrompt
    from compiler.baselines.sega import SemanticGuidance
    from compiler.baselines.sld import SafeLatentDiffusion
    from compiler.effects import joined

    if edit.method == "sega":
        return SemanticGuidance.of(edit)
    return SafeLatentDiffusion.of(edit) if edit.method == "sld" else NegativePrompt(joined(edit))


def _rates(
    bench: Bench, mark: str, prompts: Sequence[str], scale: float, deltas: Any, original: Baseline
) -> dict[str, Any]:
    """How often the mark is seen with the base, the original and the edited model."""
    asked = bench.in_turn(prompts)
    drawn = {
        "base": bench.pictures(asked, scale),
        "runtime": bench.pictures(asked, scale, original=original),
        "baked": bench.pictures(asked, scale, deltas),
    }
    seen = {who: bench.verdicts(images).flags(mark, mark) for who, images in drawn.items()}
    found = {who: rate(flags) for who, flags in seen.items()}
    found["baked_minus_runtime"] = difference(seen["baked"], seen["runtime"])
    say(f"{mark} at {scale:g}: {found}")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options(parser)
    run_cases(parser, CASES, guided)


if __name__ == "__main__":
    main()
