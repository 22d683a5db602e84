"""What the figures of erasures share: recognition by the oracles in any prompts, neighbours, copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distil_bench import Bench

STEPS, GUIDANCE = 15, 5.0
COPY = 0.75  # correlation of pixels from which a picture is a copy of another


def names_of(kind: str) -> tuple[str, ...]:
    """What the world has of a kind."""
    from excise.miniature.vocabulary import MARKS, OBJECTS, STYLES

    return {"object": OBJECTS, "style": STYLES, "content": tuple(MARKS)}[kind]


class Erasures(Bench):
    """The bench of distil.py, which also recognises styles and marks, in whatever prompts."""

    def recognised(
        self, prompts: Sequence[str], labels: Sequence[str], deltas: Mapping[str, Any], how: str
    ) -> Any:
        """Per picture: any oracle ("any") or all of them ("all") see the label."""
        import numpy as np

        return self.seen(self.pictures(prompts, deltas), np.array(labels), how)

    def pictures(self, prompts: Sequence[str], deltas: Mapping[str, Any]) -> Any:
        """One picture for each prompt, uint8 (n, h, w, 3); the same seeds whatever the changes."""
        from compiler.generate import Draw, Sampling
        from compiler.judging import changed

        draws = [Draw(prompt, self.first_seed + number) for number, prompt in enumerate(prompts)]
        with changed(self.sampler.pipeline.unet, deltas):
            return self.sampler.images(draws, Sampling(GUIDANCE, STEPS))

    def seen(self, images: Any, labels: Any, how: str) -> Any:
        """Per picture: any or all oracles see its label."""
        import numpy as np

        flags = np.zeros((len(self.evaluators), len(labels)), np.bool_)
        for row, one in enumerate(self.evaluators):
            scores = one.score(images)
            for name in dict.fromkeys(labels.tolist()):
                label = one.label_for(name)
                assert label is not None, name
                here = labels == name
                flags[row, here] = one.shows(scores[here], label)
        return flags.any(0) if how == "any" else flags.all(0)

    def named(
        self, words: Sequence[str], kind: str, label: str | None, each: int
    ) -> tuple[list[str], list[str]]:
        """Prompts with each of `words` in the templates of its kind, and what an oracle should see there."""
        from editspec.templates import TEMPLATES, fill

        templates = TEMPLATES[kind]
        pairs = [(fill(templates[k % len(templates)], w), label or w) for w in words for k in range(each)]
        return [prompt for prompt, _ in pairs], [label for _, label in pairs]

    def neighbours(self, concept: str, kind: str, known: Sequence[str]) -> list[str]:
        """The others of a kind, nearest by text embedding first."""
        import torch

        from compiler.concepts import neighbours
        from compiler.text import TextEncoder

        text = TextEncoder.from_checkpoint(self.base, torch.device("cpu"))
        others = [name for name in names_of(kind) if name != concept]
        ranked = [word for word, _ in neighbours(text, concept, 10_000, exclude={concept, *known})]
        return sorted(others, key=lambda name: ranked.index(name) if name in ranked else len(ranked))


def copies(images: Any, original: Any) -> Any:
    """Per picture: whether its pixels correlate with the original's as a copy's do; uint8 (..., h, w, 3)."""
    import numpy as np

    rows = images.reshape(len(images), -1).astype(np.float64)
    rows -= rows.mean(1, keepdims=True)
    whole = original.reshape(-1).astype(np.float64)
    whole -= whole.mean()
    sizes = np.linalg.norm(rows, axis=1) * np.linalg.norm(whole)
    return rows @ whole / np.maximum(sizes, 1e-9) >= COPY


def rate(flags: Sequence[bool]) -> list[float]:
    """[share, low, high, n] with Wilson's interval at 95 %."""
    from compiler.gates.statistics import wilson

    bounds = wilson(sum(map(bool, flags)), len(flags))
    return [*(round(float(v), 4) for v in (bounds.estimate, bounds.lower, bounds.upper)), len(flags)]
