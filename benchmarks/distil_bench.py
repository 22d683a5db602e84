"""What the figures of distilled edits share: one pass built from a spec, its evals counted, and judged."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("ball", "box", "tent", "star", "ring", "heart", "moon", "house", "tree", "fish", "boat")
ANCHOR = "ball"
FIRST_SEED = 20_000  # of judged pictures; seeds below belong to tuning


class Bench:
    """The miniature, its oracles, and one sampler whose weights builds are tried in."""

    def __init__(self, trials: int, first_seed: int = FIRST_SEED) -> None:
        from compiler.base import open_base
        from compiler.checkpoint import Checkpoint
        from compiler.evaluators import open_evaluators
        from compiler.generate import Sampler
        from excise.embedded import register

        register()
        spec = self.spec({"edit": "erase", "concept": "heart"}, 0)
        self.base: Checkpoint = open_base(spec.base, ROOT)
        self.evaluators = open_evaluators(spec, ROOT)
        self.sampler = Sampler(self.base)
        self.trials, self.first_seed = trials, first_seed

    @staticmethod
    def spec(edit: Mapping[str, Any], seed: int, **more: Any) -> Any:
        """A spec of one edit; `more` are further keys of the document."""
        from editspec import parse_spec

        document = {
            "editspec": 1,
            "name": "distil",
            "base": {"path": "miniature"},
            "seed": seed,
            "edits": [dict(edit)],
            **more,
        }
        return parse_spec(json.dumps(document))

    def build(self, edit: Mapping[str, Any], seed: int, cache: Path) -> tuple[dict[str, Any], int, float]:
        """Changes, evals that were spent, and seconds of one edit with the banks that `cache` holds."""
        return self.built(edit, seed, cache)[:3]

    def built(
        self, edit: Mapping[str, Any], seed: int, cache: Path, **more: Any
    ) -> tuple[dict[str, Any], int, float, dict[str, Any]]:
        """`build` with further keys of the spec, and the pass's record."""
        import torch

        from compiler.cache import StageCache
        from compiler.passes import PassContext, discover
        from compiler.progress import Silent
        from compiler.seeds import reproducible

        spec = self.spec(edit, seed, **more)
        (engine,) = (one for one in discover() if one.accepts(spec.edits[0]))
        context = PassContext(spec, self.base, {}, seed, torch.device("cpu"), StageCache(cache), Silent())
        with Counting() as counted, reproducible():
            start = time.perf_counter()
            result = engine.run(spec.edits, context)
            seconds = time.perf_counter() - start
        return dict(result.deltas), counted.evals, seconds, dict(result.record)

    def judge(self, concept: str, seed: int, deltas: Mapping[str, Any]) -> tuple[float, float]:
        """(how often the concept is still seen by any oracle, how often other objects are by all of them)."""
        from compiler.judging import changed

        others = [name for name in OTHERS if name not in (concept, ANCHOR)]
        with changed(self.sampler.pipeline.unet, deltas):
            erased = self._recognised([concept] * self.trials, seed, any_sees=True)
            kept = self._recognised(
                [others[k % len(others)] for k in range(2 * self.trials)], seed, any_sees=False
            )
        return erased, kept

    def _recognised(self, names: Sequence[str], seed: int, *, any_sees: bool) -> float:
        import numpy as np

        from compiler.generate import Draw, Sampling
        from editspec.templates import TEMPLATES, fill

        templates = TEMPLATES["object"]
        draws = [
            Draw(fill(templates[k % len(templates)], name), self.first_seed + 1000 * seed + k)
            for k, name in enumerate(names)
        ]
        images = self.sampler.images(draws, Sampling(5.0, 15))
        flags = np.zeros((len(self.evaluators), len(names)), np.bool_)
        for row, one in enumerate(self.evaluators):
            scores = one.score(images)
            for name in dict.fromkeys(names):
                label = one.label_for(name)
                assert label is not None
                here = np.array([other == name for other in names])
                flags[row, here] = one.shows(scores[here], label)
        return float((flags.any(0) if any_sees else flags.all(0)).mean())


class Counting:
    """Counts evals by watching the U-Net itself: a sample forward is one, with a backward three."""

    def __init__(self) -> None:
        self.evals = 0

    def __enter__(self) -> Counting:
        import torch

        self._forward: Any = torch.nn.Module.__call__
        forward = self._forward

        def watched(module: Any, *args: Any, **kwargs: Any) -> Any:
            if type(module).__name__ == "UNet2DConditionModel":
                self.evals += len(args[0]) * (3 if torch.is_grad_enabled() else 1)
            return forward(module, *args, **kwargs)

        torch.nn.Module.__call__ = watched  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        torch.nn.Module.__call__ = self._forward  # type: ignore[method-assign]


def bootstrap(values: Sequence[float], rounds: int = 2000) -> list[float]:
    """95 % percentile interval of the mean."""
    import numpy as np

    draw = np.random.default_rng(0)
    sample = np.asarray(values)[draw.integers(0, len(values), (rounds, len(values)))].mean(1)
    return [float(edge) for edge in np.quantile(sample, [0.025, 0.975])]
