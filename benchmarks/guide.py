"""Guidance, balance and phrases as weights, each beside its runtime original, on the miniature.

For `sega`, `sld` and `negative-prompt`: the error of plain guided predictions against the teacher on a bank
that was not trained on, as a share of what the teacher changes, in bins of timesteps; and how often oracles
see the mark in pictures of the base, of the original at runtime and of the edited model, from the same noise.
For `balance` and `balance-closed-form`: the mean deviation ratio over professions,
max_g |r_g - 1/n| / (1 - 1/n), before and after, also for "successful ..." and where the prompt names a group.
For `respond`: how often a phrase is obeyed, and how far pictures without it drift (mean absolute difference
of pixels, 0 to 1).

Usage: python benchmarks/guide.py [CASE ...] [--trials 50] [--trajectories 96] [--steps 400] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402 - the folder is no package
import torch  # noqa: E402

from compiler.bank_request import BankRequest  # noqa: E402
from compiler.base import open_base  # noqa: E402
from compiler.baselines import Baseline, ClassifierFreeGuidance, sample_with  # noqa: E402
from compiler.baselines.negative_prompt import NegativePrompt  # noqa: E402
from compiler.baselines.sega import SemanticGuidance  # noqa: E402
from compiler.baselines.sld import SafeLatentDiffusion  # noqa: E402
from compiler.cache import StageCache  # noqa: E402
from compiler.device import choose  # noqa: E402
from compiler.effects import effect_of, joined  # noqa: E402
from compiler.faithfulness import faithfulness  # noqa: E402
from compiler.guided_bank import GuidingTeacher  # noqa: E402
from compiler.guided_request import GuidedRequest, scales_around  # noqa: E402
from compiler.passes import PassContext  # noqa: E402
from compiler.pipeline import run_passes  # noqa: E402
from compiler.plan import make_plan  # noqa: E402
from compiler.progress import Silent  # noqa: E402
from compiler.seeds import gaussian, generator  # noqa: E402
from compiler.unet import add_deltas, build_unet, config_of, latent_shape  # noqa: E402
from editspec import Guide, parse_spec  # noqa: E402
from excise.embedded import register  # noqa: E402
from excise.miniature.judging import Verdicts  # noqa: E402
from excise.miniature.vocabulary import GROUPS, PROFESSIONS, TONES, group_rate  # noqa: E402

MARK = "crack"
CONTEXTS = ("quake", "ruin", "desert")  # words that draw the mark without naming it
TRAINED = ("house", "ball", "tree", "ring", "box", "heart")
UNSEEN = ("boat", "fish", "moon")
LEARNED_ON = [f"a {thing} at {context}" for context in CONTEXTS for thing in TRAINED] + [
    f"a {thing} with {MARK}" for thing in TRAINED
]
JUDGED = {
    "implicit": [f"a {thing} at {context}" for context in CONTEXTS for thing in UNSEEN],
    "explicit": [f"a {thing} with {MARK}" for thing in UNSEEN],
}
KEPT = ["star", "sixstar", "tent", "dotted", "striped"]
GUIDES: dict[str, dict[str, Any]] = {
    "sega": {"method": "sega", "away_from": [MARK], "scale": 7, "warmup": 2, "threshold": 0.85},
    "sld": {"method": "sld", "away_from": [MARK], "preset": "strong", "warmup": 2},
    "negative-prompt": {"method": "negative-prompt", "away_from": [MARK]},
}
BIASED = tuple(sorted(PROFESSIONS, key=lambda who: abs(group_rate(who) - 0.5), reverse=True)[:12])
FAIR: dict[str, Any] = {
    "edit": "balance", "prompts": ["a photo of a {}", "a {}", "a photo of a successful {}"],
    "professions": list(BIASED), "groups": list(GROUPS), "group_template": "{group} {profession}",
}  # fmt: skip
CASES = (*GUIDES, "balance", "balance-closed-form", "intersections", "respond")
SAMPLING_STEPS = 20


class Bench:
    """One device, one cache, the miniature; compiles edits and draws with any U-Net and original."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        register()
        self.arguments = arguments
        self.device = choose(arguments.device)
        self.cache = StageCache(arguments.cache)
        self.training = {
            "steps": arguments.steps, "trajectories": arguments.trajectories, "batch": arguments.batch,
            "learning_rate": arguments.learning_rate, "schedule": "cosine", "sampling_steps": SAMPLING_STEPS,
        }  # fmt: skip

    def context(self, edit: dict[str, Any]) -> PassContext:
        """A context for a spec of this edit alone."""
        document = {
            "editspec": 1, "name": "bench", "base": {"path": "miniature"}, "seed": 11,
            "edits": [{"id": "bench", **edit}], "preserve": {"concepts": KEPT},
        }  # fmt: skip
        spec = parse_spec(json.dumps(document))
        checkpoint = open_base(spec.base, spec.folder)
        return PassContext(spec, checkpoint, {}, spec.seed, self.device.open(), self.cache, Silent())

    def edited(self, context: PassContext) -> tuple[torch.nn.Module, dict[str, Any]]:
        """The edited U-Net and the record of its one pass."""
        plan = make_plan(context.spec, context.checkpoint, self.cache, self.device)
        say(f"compile {plan.passes[0].title}: {plan.passes[0].evals} evals")
        deltas, _, records = run_passes(context.spec, context.checkpoint, plan, self.cache, Silent())
        unet = build_unet(context.checkpoint, context.device)
        add_deltas(unet, deltas)
        return unet, records[0]["record"]

    def pictures(
        self,
        context: PassContext,
        unet: torch.nn.Module,
        prompts: Sequence[str],
        scale: float,
        original: Baseline | None = None,
    ) -> np.ndarray:
        """`trials` pictures for prompts in turn, uint8 (n, h, w, 3); equal seeds whatever draws them."""
        from diffusers import AutoencoderKL

        teacher = GuidingTeacher(context)
        vae = AutoencoderKL.from_pretrained(context.checkpoint.root / "vae").to(context.device)
        asked = [prompts[number % len(prompts)] for number in range(self.arguments.trials)]
        found = []
        for start in range(0, len(asked), 32):
            part = asked[start : start + 32]
            numbers = range(start, start + len(part))
            shape = latent_shape(config_of(unet))
            noise = torch.stack([gaussian(shape, 20_000, "judge", number) for number in numbers])
            sampled = sample_with(
                original or ClassifierFreeGuidance(), unet, teacher.scheduler, teacher.encode,
                noise.to(context.device), teacher.unconditional, teacher.encode(part), steps=SAMPLING_STEPS,
                guidance_scale=scale, generators=[generator(20_000, number) for number in numbers],
            )  # fmt: skip
            with torch.no_grad():
                decoded = vae.decode(sampled.latents / vae.config.scaling_factor).sample
            found.append(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu())
        return np.ascontiguousarray(torch.cat(found).numpy())


def guided(bench: Bench, name: str) -> dict[str, Any]:
    """Faithfulness on a held-out bank and rates of the mark, for one guide edit."""
    edit = {"edit": "guide", **GUIDES[name], "prompts": LEARNED_ON, **bench.training}
    context = bench.context(edit)
    (built,) = context.spec.edits
    assert isinstance(built, Guide)
    unet, _ = bench.edited(context)
    teacher = GuidingTeacher(context)
    plain = BankRequest.of(built, 99, JUDGED["implicit"], max(9, bench.arguments.trajectories // 4))
    effect = effect_of(built)
    bank = teacher.bank(GuidedRequest(plain, effect, scales_around(built.guidance_scale)))
    prompts = teacher.encode(bank.prompts)
    bins = {
        scale: [
            {"timesteps": [bin.low, bin.high], "change": bin.change, "error": bin.error, "ratio": bin.ratio}
            for bin in faithfulness(unet, bank, effect, teacher.unconditional, prompts, scale)
        ]
        for scale in bench.arguments.scales
    }
    original: Baseline = {
        "sega": lambda: SemanticGuidance.of(built),
        "sld": lambda: SafeLatentDiffusion.of(built),
        "negative-prompt": lambda: NegativePrompt(joined(built)),
    }[name]()
    rates = {}
    for kind, judged in JUDGED.items():
        for scale in bench.arguments.scales:
            drawn = {
                "base": bench.pictures(context, teacher.unet, judged, scale),
                "runtime": bench.pictures(context, teacher.unet, judged, scale, original),
                "baked": bench.pictures(context, unet, judged, scale),
            }
            shown = {who: float(Verdicts(images).flags(MARK, MARK).mean()) for who, images in drawn.items()}
            rates[f"{kind}, guidance {scale:g}"] = shown
            say(f"{name} {kind} {scale:g}: {shown}")
    gaps = [abs(shown["baked"] - shown["runtime"]) for shown in rates.values()]
    worst = {f"guidance {scale:g}": max(bin["ratio"] for bin in listed) for scale, listed in bins.items()}
    return {"worst_bin": worst, "largest_gap": max(gaps), "bins": bins, "rates": rates}


def balanced(bench: Bench, method: str, groups: Sequence[Sequence[str]] = (GROUPS,)) -> dict[str, Any]:
    """Deviation ratios before and after; with several attributes over their combinations."""
    training = bench.training if method == "distil" else {"ridge": 0.01}
    listed = list(groups[0]) if len(groups) == 1 else [list(attribute) for attribute in groups]
    edit = {**FAIR, "groups": listed, "method": method, **training}
    if method == "distil":
        combinations = int(np.prod([len(attribute) for attribute in groups]))
        edit["professions"] = edit["professions"][: max(1, training["trajectories"] // (3 * combinations))]
    context = bench.context(edit)
    unet, record = bench.edited(context)
    base = build_unet(context.checkpoint, context.device)
    found: dict[str, Any] = {"evals": record["evals"], "professions": edit["professions"]}
    for kind, template in (("plain", "a photo of a {}"), ("hard", "a photo of a successful {}")):
        for scale in bench.arguments.scales:
            both = [
                float(
                    np.mean(
                        [
                            _deviation(bench, context, u, template.format(who), scale, groups)
                            for who in edit["professions"]
                        ]
                    )
                )
                for u in (base, unet)
            ]
            found[f"{kind}, guidance {scale:g}"] = {"base": both[0], "edited": both[1]}
            say(f"balance {method} {kind} {scale:g}: {both}")
    named = [f"a photo of a {GROUPS[0]} {who}" for who in edit["professions"]]
    found["named, guidance 5"] = {
        who: float(Verdicts(bench.pictures(context, u, named, 5.0)).shows("group", GROUPS[0]).mean())
        for who, u in (("base", base), ("edited", unet))
    }
    return found


def _deviation(
    bench: Bench,
    context: PassContext,
    unet: torch.nn.Module,
    prompt: str,
    scale: float,
    groups: Sequence[Sequence[str]],
) -> float:
    """max_g |r_g - 1/n| / (1 - 1/n) of one prompt over all combinations of groups, mean of both oracles."""
    verdicts = Verdicts(bench.pictures(context, unet, [prompt], scale))
    ratios = []
    for answers in verdicts.by_oracle:
        labels = ["tone" if attribute == TONES else "group" for attribute in groups]
        seen = np.stack([answers[label] for label in labels], axis=1)
        combinations = np.array(np.meshgrid(*groups)).reshape(len(groups), -1).T
        shares = np.array([(seen == combination).all(1).mean() for combination in combinations])
        even = 1 / len(combinations)
        ratios.append(float(np.abs(shares - even).max() / (1 - even)))
    return float(np.mean(ratios))


def obeyed(bench: Bench) -> dict[str, Any]:
    """Whether "without <mark>" is obeyed where a context draws it, and what other prompts lose."""
    phrase = {"text": f"without {MARK}", "direction": {"prompt": "a scene", "negative_prompt": MARK}}
    prompts = [prompt for prompt in LEARNED_ON if " at " in prompt]
    context = bench.context({"edit": "respond", "phrases": [phrase], "prompts": prompts, **bench.training})
    unet, _ = bench.edited(context)
    base = build_unet(context.checkpoint, context.device)
    found: dict[str, Any] = {}
    for scale in bench.arguments.scales:
        said = [f"{prompt} {phrase['text']}" for prompt in JUDGED["implicit"]]
        drawn = {
            "base": bench.pictures(context, base, said, scale),
            "edited": bench.pictures(context, unet, said, scale),
            "edited, not said": bench.pictures(context, unet, JUDGED["implicit"], scale),
            "base, not said": bench.pictures(context, base, JUDGED["implicit"], scale),
        }
        shown = {who: float(Verdicts(images).flags(MARK, MARK).mean()) for who, images in drawn.items()}
        pair = [drawn[who].astype(np.float32) for who in ("base, not said", "edited, not said")]
        drift = float(np.abs(pair[1] - pair[0]).mean() / 255)
        found[f"guidance {scale:g}"] = {"obeyed": 1 - shown["edited"], "rates": shown, "drift": drift}
        say(f"respond {scale:g}: {found[f'guidance {scale:g}']}")
    return found


def say(line: str) -> None:
    """Progress, beside the results."""
    print(line, file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of the chosen cases."""
    bench = Bench(arguments)
    run = {
        **{name: (lambda name=name: guided(bench, name)) for name in GUIDES},
        "balance": lambda: balanced(bench, "distil"),
        "balance-closed-form": lambda: balanced(bench, "closed-form"),
        "intersections": lambda: balanced(bench, "distil", (TONES, GROUPS)),
        "respond": lambda: obeyed(bench),
    }
    return {case: run[case]() for case in arguments.cases or CASES}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--trials", type=int, default=50, help="pictures for each cell")
    parser.add_argument("--trajectories", type=int, default=96)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--scales", type=float, nargs="+", default=[3.0, 5.0, 7.5], help="guidance scales")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, help="folder of the stage cache")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    if unknown := sorted({*arguments.cases} - {*CASES}):
        parser.error(f"no case {unknown[0]}; there are {', '.join(CASES)}")
    figures = measure(arguments)
    print(json.dumps(figures) if arguments.json else json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
