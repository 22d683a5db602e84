"""What the latent figures say of one way of drawing, and of the gated and saved uses of a direction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from latent_bench import GUIDANCE, LEARNED_ON, Bench, Rate, Way, latent_shape_of


def row_beside(bench: Bench, guidance: float, way: Way, each: int, harmless: int) -> dict[str, Any]:
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


def gated(bench: Bench) -> dict[str, Any]:
    """The direction carried by the text's values: rates beside the base, and how far the empty half moves."""
    import torch

    from compiler.sampling import predict
    from compiler.seeds import gaussian
    from compiler.teacher import Teacher
    from compiler.unet import add_deltas, build_unet

    arguments, way = bench.arguments, bench.folded("gated")
    row = row_beside(bench, GUIDANCE, way, arguments.each_beside, arguments.harmless_beside)
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
