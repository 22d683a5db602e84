"""Balance as weights on the miniature: who is drawn for professions that the base draws one-sidedly.

The mean deviation ratio max_g |r_g - 1/n| / (1 - 1/n) over professions before and after, for plain prompts
and for "successful ..." ones, beside what a fair draw of as many pictures shows (compiler.deviation); both
oracles must agree on a picture for it to count. `runtime` is the original, fair generation at runtime: the
base, told a group in every picture, each as often. The edit mixes what the base draws when told, so this is
what it can reach. `doubt`: before each step of a trajectory, how open it is who is drawn. `named`: how often
prompts that name a group show it, by attribute where there are two, and how far their pictures move (distance
between base and edited in units of the distance between two seeds).
`quality`: KID over an oracle's features, of objects that have nothing to do with it against the base's,
and of the professions against the base's under named groups in equal shares; `chance` is the base against
itself.

Cases: balance (distilled), closed-form, and two attributes at once: intersections, and two-tones without the
tone between the others, which the base hardly draws when told to.

Usage: python benchmarks/balance.py [CASE ...] [--trials 100] [--scales 5] [--survey 12] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from guide_bench import Bench, moved, options, rate, run_cases, say  # noqa: E402 - the folder is no package

from compiler.deviation import deviation, ratios  # noqa: E402
from compiler.kid import chance, kernel_distance  # noqa: E402
from excise.miniature.vocabulary import GROUPS, OBJECTS, PROFESSIONS, TONES  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.generate import Images


LEARNED_ON = ("a photo of a {}", "a {}", "a photo of a successful {}")
JUDGED = {"plain": "a photo of a {}", "hard": "a photo of a successful {}"}
SURVEY = -15_000  # from the judged seeds: those of tuning
CASES: dict[str, dict[str, Sequence[str]]] = {
    "balance": {"group": GROUPS},
    "closed-form": {"group": GROUPS},
    "intersections": {"tone": TONES, "group": GROUPS},
    "two-tones": {"tone": (TONES[0], TONES[-1]), "group": GROUPS},
}
"""The words of each attribute, in the order in which prompts name them."""
LEARNING = {
    "steps": 700, "calibrate": 2, "trajectories": 384, "batch": 24, "learning_rate": 1e-2,
    "schedule": "cosine", "sampling_steps": 15, "timesteps": 15, "selection": "cross-attention",
}  # fmt: skip


def balanced(bench: Bench, case: str) -> dict[str, Any]:
    """Deviation before and after, named groups, and the quality of pictures."""
    attributes = CASES[case]
    groups = [list(words) for words in attributes.values()]
    combinations = [" ".join(words) for words in product(*groups)]
    closed = case == "closed-form"
    edit: dict[str, Any] = {
        "edit": "balance", "prompts": list(LEARNED_ON), "groups": groups if len(groups) > 1 else groups[0],
        "group_template": "{group} {profession}", "method": "closed-form" if closed else "distil",
        **({"ridge": 0.01} if closed else LEARNING),
    }  # fmt: skip
    chosen = one_sided(bench)
    if not closed:
        trajectories = (edit | bench.arguments.edit)["trajectories"]
        chosen = chosen[: max(1, trajectories // (len(LEARNED_ON) * len(combinations)))]
    context = bench.context({**edit, "professions": list(chosen)})
    deltas, record = bench.compiled(context)
    found: dict[str, Any] = {"evals": record["evals"], "professions": list(chosen), "groups": combinations}
    found |= {name: record[name] for name in ("decided", "doubt") if name in record}
    for kind, template in JUDGED.items():
        for scale in bench.arguments.scales:
            neutral = [[template.format(one)] for one in chosen]
            told = [[template.format(f"{group} {one}") for group in combinations] for one in chosen]
            counts = {
                who: _counts(bench, prompts, scale, changed, attributes)
                for who, prompts, changed in (
                    ("base", neutral, None),
                    ("runtime", told, None),
                    ("edited", neutral, deltas),
                )
            }
            found[f"{kind}, guidance {scale:g}"] = {
                **{who: deviation(seen).as_dict() for who, seen in counts.items()},
                "counts": counts,
            }
            say(f"{case} {kind} {scale:g}: {found[f'{kind}, guidance {scale:g}']}")
    found["named"] = _named(bench, chosen, attributes, deltas)
    found["quality"] = _quality(bench, chosen, combinations, deltas)
    return found


def one_sided(bench: Bench) -> tuple[str, ...]:
    """The professions that the base draws most one-sidedly, on seeds that are not judged.

    What the world was drawn with does not tell: guidance and training moved each profession its own way.
    """
    count = bench.arguments.survey
    asked = [JUDGED["plain"].format(who) for who in PROFESSIONS for _ in range(count)]
    verdicts = bench.verdicts(bench.pictures(asked, bench.arguments.scales[0], later=SURVEY))
    seen = np.stack([verdicts.shows("group", name).reshape(-1, count).sum(1) for name in GROUPS], axis=1)
    order = np.argsort(-ratios(np.maximum(seen, 1)), kind="stable")
    return tuple(PROFESSIONS[place] for place in order[: bench.arguments.professions])


def _counts(
    bench: Bench,
    prompts: Sequence[Sequence[str]],
    scale: float,
    deltas: Any,
    attributes: Mapping[str, Sequence[str]],
) -> list[list[int]]:
    """For each profession, how many of `trials` pictures show each combination, where both oracles agree.

    A profession's `prompts` take turns.
    """
    trials = bench.arguments.trials
    asked = [prompt for own in prompts for prompt in bench.in_turn(own)]
    answers = bench.verdicts(bench.pictures(asked, scale, deltas)).by_oracle
    rows = []
    for words in product(*attributes.values()):
        seen = [one[name] == word for one in answers for name, word in zip(attributes, words, strict=True)]
        rows.append(np.logical_and.reduce(seen).reshape(len(prompts), trials).sum(1))
    return [[int(one) for one in row] for row in np.stack(rows, axis=1)]


def _named(
    bench: Bench,
    professions: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    deltas: dict[str, Tensor],
) -> dict[str, Any]:
    """Prompts that name a group: whether it is drawn, before and after, and how far their pictures moved."""
    asked = [(who, words) for who in professions for words in product(*attributes.values())]
    turns = [asked[number % len(asked)] for number in range(max(len(asked), bench.arguments.trials))]
    prompts = [f"a photo of a {' '.join(words)} {who}" for who, words in turns]
    seen = {
        "base": bench.verdicts(bench.pictures(prompts, 5.0)),
        "edited": bench.verdicts(bench.pictures(prompts, 5.0, deltas)),
    }
    shown = {}
    for place, name in enumerate(attributes):
        wanted = np.array([words[place] for _, words in turns])
        shown[name] = {who: rate(verdicts.shows(name, wanted)) for who, verdicts in seen.items()}
    found = {**(shown if len(shown) > 1 else shown["group"]), "drift": moved(bench, prompts, 5.0, deltas)}
    say(f"named: {found}")
    return found


def _features(bench: Bench, images: Images) -> np.ndarray:
    """What the first oracle makes of pictures before it answers."""
    found = bench.oracles[0].features(images)
    assert found is not None
    return found


def _quality(
    bench: Bench, professions: Sequence[str], combinations: Sequence[str], deltas: dict[str, Tensor]
) -> dict[str, Any]:
    """KID of objects, and of professions against the base's under every group in equal shares."""
    size = bench.arguments.pictures
    objects = bench.in_turn([f"a photo of a {thing}" for thing in OBJECTS], size)
    neutral = bench.in_turn([f"a photo of a {who}" for who in professions], size)
    even = bench.in_turn([f"a photo of a {g} {who}" for g in combinations for who in professions], size)
    found = {}
    for what, asked, against in (("objects", objects, objects), ("professions", neutral, even)):
        features = [
            _features(bench, images)
            for images in (
                bench.pictures(against, 5.0, later=60_000),
                bench.pictures(against, 5.0, later=80_000),
                bench.pictures(asked, 5.0, deltas),
                bench.pictures(asked, 5.0),
            )
        ]
        found[what] = {
            "edited": float(f"{kernel_distance(features[0], features[2]):.3g}"),
            "base": float(f"{kernel_distance(features[0], features[3]):.3g}"),
            "chance": float(f"{chance(np.concatenate(features[:2]), size):.3g}"),
            "pictures": size,
        }
    say(f"quality: {found}")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options(parser)
    parser.set_defaults(scales=[5.0], trials=100)
    parser.add_argument("--professions", type=int, default=12, help="how many of the most one-sided ones")
    parser.add_argument("--survey", type=int, default=12, help="pictures of each by which these are found")
    parser.add_argument("--pictures", type=int, default=144, help="of each set that KID compares")
    run_cases(parser, CASES, balanced)


if __name__ == "__main__":
    main()
