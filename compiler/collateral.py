"""The collateral report: how much each neighbour of an edited concept lost, beside how near it is.

Erasing "car" hurts "tank": damage follows the distance between text embeddings. So after a build every
concept that a gate watched, and every neighbour that was mined and that an evaluator can see, is listed with
its cosine to the nearest edited word and its loss of recognition; the worst is named. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.gates.gate import SEED_BITS
from compiler.generate import Draw, Sampler, Sampling
from compiler.mining import edited_words
from compiler.seeds import derive
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    import torch

    from compiler.cache import StageCache
    from compiler.checkpoint import Checkpoint
    from compiler.evaluators import Evaluator
    from compiler.gates.report import GateReport
    from compiler.progress import Progress
    from editspec import EditSpec

TRIALS = 10  # pictures of each mined neighbour that no gate watches, by each model


def mined_words(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The neighbours in the passes' records: {edit: [[word, cosine], ...]}, or such a list for one edit."""
    found: dict[str, None] = {}
    for record in records:
        mined = record.get("record", {}).get("neighbours") or []
        lists = mined.values() if isinstance(mined, dict) else [mined]
        found |= dict.fromkeys(word for one in lists for word, _ in one)
    return tuple(found)


def collateral_evals(spec: EditSpec) -> int:
    """Evals of drawing mined neighbours with both models, where an evaluator can see all of them: at most."""
    words = spec.preserve.auto * len(spec.edits)
    return 2 * 2 * words * TRIALS * _sampling(spec).steps


def collateral(
    report: GateReport,
    spec: EditSpec,
    base: Checkpoint,
    edited: Checkpoint,
    evaluators: Sequence[Evaluator],
    mined: Sequence[str],
    device: torch.device | None = None,
    progress: Progress | None = None,
    cache: StageCache | None = None,
) -> dict[str, Any]:
    """JSON facts: `concepts`, nearest first, each with `near`, `cosine`, counts and `loss`; the `worst`."""
    rows = watched(report)
    fresh = [
        word
        for word in mined
        if word not in rows and any(one.label_for(word) is not None for one in evaluators)
    ]
    if fresh:
        samplers = [Sampler(one, device=device, cache=cache) for one in (base, edited)]
        rows |= _drawn(fresh, spec, samplers, evaluators, progress)
    edits = edited_words(spec)
    if not rows or not edits:
        return {"concepts": [], "worst": None}
    nearest = _nearest(tuple(rows), edits, base, device)
    table = [{"concept": name, **nearest[name], **row} for name, row in rows.items()]
    table.sort(key=lambda row: (-row["cosine"], row["concept"]))
    worst = max(table, key=lambda row: (row["loss"], row["cosine"]))
    return {"concepts": table, "worst": worst["concept"] if worst["loss"] > 0 else None}


def watched(report: GateReport) -> dict[str, dict[str, Any]]:
    """What the gates measured of each concept that must stay, all of their draws of it together."""
    found: dict[str, dict[str, Any]] = {}
    for result in report.results:
        if result.plan.gate.gate not in ("preserved", "neighbours"):
            continue
        for row in result.details.get("concepts", ()):
            # The same draws are shared by gates: what an earlier gate counted is not counted again.
            found.setdefault(row["concept"], _row(row["n"], row["base"], row["edited"]))
    return found


def _drawn(
    words: Sequence[str],
    spec: EditSpec,
    samplers: Sequence[Sampler],
    evaluators: Sequence[Evaluator],
    progress: Progress | None,
) -> dict[str, dict[str, Any]]:
    """Pictures of words by both models, and how many of them show their word to all who know it."""
    import numpy as np

    draws = []
    for word in words:
        for number in range(TRIALS):
            prompt = fill(TEMPLATES["object"][number % len(TEMPLATES["object"])], word)
            draws.append(Draw(prompt, derive(spec.seed, "collateral", prompt, number) % 2**SEED_BITS))
    shown = []
    for sampler in samplers:
        images = sampler.images(draws, _sampling(spec), progress=progress, name="draw neighbours")
        scores = {one.id: one.score(images) for one in evaluators}
        counts = []
        for place, word in enumerate(words):
            here = slice(place * TRIALS, (place + 1) * TRIALS)
            known = [(one, label) for one in evaluators if (label := one.label_for(word)) is not None]
            flags = [one.shows(scores[one.id][here], label) for one, label in known]
            counts.append(int(np.logical_and.reduce(flags).sum()))
        shown.append(counts)
    return {word: _row(TRIALS, shown[0][at], shown[1][at]) for at, word in enumerate(words)}


def _nearest(
    concepts: Sequence[str], edits: Sequence[str], base: Checkpoint, device: torch.device | None
) -> dict[str, dict[str, Any]]:
    """The edited word nearest to each concept, with the centred cosine of their text embeddings."""
    from compiler.concepts import Neighbourhood
    from compiler.text import TextEncoder

    hood = Neighbourhood(TextEncoder.from_checkpoint(base, device or "cpu"))
    found: dict[str, dict[str, Any]] = {name: {"near": None, "cosine": -1.0} for name in concepts}
    for word in edits:
        for name, cosine in hood.cosines(word, concepts):
            if cosine > found[name]["cosine"]:
                found[name] = {"near": word, "cosine": round(cosine, 4)}
    return found


def _row(n: int, base: int, edited: int) -> dict[str, Any]:
    return {"n": n, "base": base, "edited": edited, "loss": (base - edited) / n}


def _sampling(spec: EditSpec) -> Sampling:
    """As the spec's first gate draws, so that its pictures are comparable; else the default."""
    if not spec.gates:
        return Sampling()
    return Sampling(spec.gates[0].guidance_scale, spec.gates[0].steps)
