"""One spec of five edits beside each of its edits compiled alone, on the miniature.

`excise compile examples/composed.json` builds the whole; each edit is also compiled by itself from the same
file. Both are judged by both oracles on the same draws: percents with intervals, and `composed_minus_alone`
in points. A mark is seen when either oracle sees it, an object when both do. `interference` is what the build
itself reports: how far later passes moved what an earlier one did, as a share of what it did.

Usage: python benchmarks/composed.py [SPEC] [--trials 60] [--pictures 40] [--hard] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from guide_bench import (  # noqa: E402 - the folder is no package
    UNSEEN,
    Bench,
    difference,
    options,
    rate,
    say,
    show,
)

from compiler.deviation import deviation  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from excise.miniature.judging import Verdicts

SPEC = ROOT / "examples" / "composed.json"
SCALE = 5.0

Seen = Callable[["Verdicts"], np.ndarray[Any, Any]]


def shows(name: str) -> Seen:
    """Both oracles see the object."""
    return lambda verdicts: verdicts.shows("object", name)


def flags(mark: str) -> Seen:
    """Either oracle sees the mark."""
    return lambda verdicts: verdicts.flags(mark, mark)


FIGURES: dict[str, dict[str, tuple[Sequence[str], Seen]]] = {
    "no-star": {"star, asked for": (("a photo of a star", "a star", "a red star"), shows("star"))},
    "no-heart": {
        "heart, asked for": (("a photo of a heart", "a heart", "a red heart"), shows("heart")),
        "its anchor in its place": (("a photo of a heart", "a heart", "a red heart"), shows("ball")),
    },
    "less-spill": {
        "spill, implied": (
            [f"a {thing} at {word}" for word in ("crime", "kitchen", "hunt") for thing in UNSEEN],
            flags("spill"),
        )
    },
    "no-crack": {
        "crack, implied": (
            [f"a {thing} at {word}" for word in ("quake", "ruin", "desert") for thing in UNSEEN],
            flags("crack"),
        ),
        "crack, asked for": ([f"a {thing} with crack" for thing in UNSEEN], flags("crack")),
    },
}
KEPT = ("moon", "house", "tree", "fish", "boat", "tent", "ball", "ring")


def compiled(spec: Path, folder: Path, cache: Path | None) -> Path:
    """The artifact of `excise compile`, which must pass its gates or says why not."""
    command = [sys.executable, "-m", "excise", "compile", str(spec), "-o", str(folder), "--force"]
    done = subprocess.run([*command, *(["--cache", str(cache)] if cache else [])], cwd=ROOT)
    if done.returncode == 3:  # a gate failed: the figures say more
        return folder.parent / "rejected" / folder.name
    done.check_returncode()
    return folder


def alone(bench: Bench, document: Mapping[str, Any], place: int) -> dict[str, Tensor]:
    """The changes of one edit of the spec, compiled by itself."""
    from compiler.passes import PassContext
    from compiler.progress import Silent
    from editspec import parse_spec

    spec = parse_spec(json.dumps({**document, "edits": [document["edits"][place]], "gates": []}))
    device = bench.device.open()
    context = PassContext(spec, bench.base, {}, spec.seed, device, bench.cache, Silent())
    return bench.compiled(context)[0]


def changes(bench: Bench, artifact: Path) -> dict[str, Tensor]:
    """What the artifact's U-Net has over the base's."""
    from compiler.checkpoint import Checkpoint

    edited, base = Checkpoint.open(artifact).weights("unet"), bench.base.weights("unet")
    found = {name: edited.read(name).float() - base.read(name).float() for name in base.entries}
    return {name: delta for name, delta in found.items() if delta.any()}


def shares(
    bench: Bench, document: Mapping[str, Any], edit: Mapping[str, Any], ways: Mapping[str, Any]
) -> dict[str, Any]:
    """Mean deviation ratios over the edit's professions, for each way of drawing."""
    count, found = bench.arguments.pictures, {}
    templates = {"plain": "a photo of a {}", "hard": "a photo of a successful {}"}
    for kind in templates if bench.arguments.hard else ("plain",):
        template = templates[kind]
        asked = [template.format(who) for who in edit["professions"] for _ in range(count)]
        row = {}
        for who, deltas in ways.items():
            verdicts = bench.verdicts(bench.pictures(asked, SCALE, deltas))
            seen = np.stack([verdicts.shows("group", group) for group in edit["groups"]])
            row[who] = deviation(seen.reshape(len(seen), -1, count).sum(2).T.tolist()).as_dict()
        found[kind] = row
        say(f"{edit['id']} {kind}: {row}")
    return found


def judged(
    bench: Bench, ways: Mapping[str, Any], prompts: Sequence[str], seen: Seen, count: int | None = None
) -> dict[str, Any]:
    """How often it is seen in each way of drawing."""
    asked = bench.in_turn(prompts, count)
    shown = {who: seen(bench.verdicts(bench.pictures(asked, SCALE, deltas))) for who, deltas in ways.items()}
    found: dict[str, Any] = {who: rate(flags) for who, flags in shown.items()}
    if "alone" in shown:
        found["composed_minus_alone"] = difference(shown["composed"], shown["alone"])
    return found


def measure(bench: Bench, spec: Path) -> dict[str, Any]:
    """All figures."""
    document = json.loads(spec.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        artifact = compiled(spec, Path(scratch) / "composed", bench.arguments.cache)
        whole = changes(bench, artifact)
        report = json.loads((artifact / "provenance" / "edits.json").read_text("utf-8"))
        gates = json.loads((artifact / "provenance" / "gates.json").read_text("utf-8"))
    found: dict[str, Any] = {
        "rejected": artifact.parent.name == "rejected", "edits": {}, "interference": interference(report),
        "gates": gates,
    }  # fmt: skip
    for place, edit in enumerate(document["edits"]):
        ways = {"base": None, "alone": alone(bench, document, place), "composed": whole}
        if edit["edit"] == "balance":
            found["edits"][edit["id"]] = shares(bench, document, edit, ways)
            continue
        found["edits"][edit["id"]] = {
            what: judged(bench, ways, prompts, seen) for what, (prompts, seen) in FIGURES[edit["id"]].items()
        }
        say(f"{edit['id']}: {found['edits'][edit['id']]}")
    prompts = [f"a photo of a {name}" for name in KEPT]
    names = np.array(bench.in_turn(KEPT, 2 * bench.arguments.trials))
    found["kept"] = judged(
        bench, {"base": None, "composed": whole}, prompts,
        lambda verdicts: verdicts.shows("object", names), 2 * bench.arguments.trials,
    )  # fmt: skip
    return found


def interference(report: Any) -> list[Any]:
    """Each pass's row of the build's own report."""
    if isinstance(report, dict):
        own = [report["interference"]] if "interference" in report else []
        return own + [row for value in report.values() for row in interference(value)]
    return [row for value in report for row in interference(value)] if isinstance(report, list) else []


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, nargs="?", default=SPEC)
    options(parser)
    parser.set_defaults(sampling_steps=10)
    parser.add_argument("--pictures", type=int, default=40, help="of each profession")
    parser.add_argument("--hard", action="store_true", help='"successful" professions as well')
    arguments = parser.parse_args()
    show(measure(Bench(arguments), arguments.spec), arguments)


if __name__ == "__main__":
    main()
