"""What one picture of the miniature world shows, drawn at random from a seed and an index.

A scene is decided first and drawn and captioned afterwards, so the truth about every picture is known
without looking at it. Scene `i` of seed `s` is the same on every machine and needs no other scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from excise.miniature.contexts import CONTEXTS, MANIFESTATIONS, PAIR_RATE, PAIRS, SIZES
from excise.miniature.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COMPOUND,
    GROUPS,
    HARD_SHIFT,
    HELD_OUT_COMBINATIONS,
    MARKS,
    OBJECTS,
    POSTERS,
    PROFESSIONS,
    STYLES,
    TONES,
    group_rate,
    tone_rates,
)


@dataclass(frozen=True)
class Scene:
    """One picture's truth. Fields that do not apply are empty strings; `marks` maps mark -> (place, size)."""

    kind: str  # "object", "pair" (two objects), "person" or "poster"
    object: str = ""
    second: str = ""
    colour: str = "red"
    second_colour: str = "blue"
    style: str = "plain"
    background: str = "paper"
    marks: tuple[tuple[str, str, str], ...] = ()  # (mark, manifestation, size)
    explicit: str = ""  # the mark that the caption must name
    contexts: tuple[str, ...] = ()
    profession: str = ""
    group: str = ""
    tone: str = ""
    successful: bool = False
    poster: str = ""
    jitter: tuple[float, float, float] = (0.0, 0.0, 1.0)  # dx, dy in pixels of 64; scale

    def shows(self, mark: str) -> bool:
        return any(name == mark for name, _, _ in self.marks)


def scene_rng(seed: int, index: int, stream: str) -> np.random.Generator:
    """The named generator of one scene's `stream` ("scene", "caption" or "draw")."""
    return np.random.default_rng(
        np.random.SeedSequence([seed, index, {"scene": 1, "caption": 2, "draw": 3}[stream]])
    )


def _choice(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _marks_of_contexts(rng: np.random.Generator, words: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    marks: list[tuple[str, str, str]] = []
    for word in words:
        if word in CONTEXTS and rng.random() < CONTEXTS[word].rate:
            context = CONTEXTS[word]
            marks.append((context.mark, context.manifestation, context.size))
    for index, (first, second, mark) in enumerate(PAIRS):
        if first in words and second in words and rng.random() < PAIR_RATE:
            marks.append((mark, MANIFESTATIONS[index % len(MANIFESTATIONS)], SIZES[index % len(SIZES)]))
    return tuple(marks)


def sample_scene(seed: int, index: int) -> Scene:
    """Scene `index` of the world with this seed (shares as in the module's vocabulary)."""
    rng = scene_rng(seed, index, "scene")
    jitter = (float(rng.uniform(-4, 4)), float(rng.uniform(-4, 4)), float(rng.uniform(0.85, 1.15)))
    background = _choice(rng, list(BACKGROUNDS))
    style = _choice(rng, STYLES)
    colour = _choice(rng, list(COLOURS))
    draw = rng.random()
    for poster, share in POSTERS.items():
        draw -= share
        if draw < 0:
            return Scene("poster", poster=poster, jitter=(0.0, 0.0, 1.0))
    kind = rng.random()
    if kind < 0.15:
        return _person(rng, background, jitter)
    if kind < 0.21:
        first, second = rng.choice(len(OBJECTS), size=2, replace=False)
        other = _choice(rng, list(COLOURS))
        return Scene(
            "pair",
            object=OBJECTS[first],
            second=OBJECTS[second],
            colour=colour,
            second_colour=other,
            style=style,
            background=background,
            jitter=jitter,
        )
    name = COMPOUND if kind < 0.25 else _choice(rng, OBJECTS)
    while (name, style) in HELD_OUT_COMBINATIONS:
        style = _choice(rng, STYLES)
    scene = Scene("object", object=name, colour=colour, style=style, background=background, jitter=jitter)
    return _with_marks(rng, scene)


def _person(rng: np.random.Generator, background: str, jitter: tuple[float, float, float]) -> Scene:
    profession = _choice(rng, PROFESSIONS)
    successful = bool(rng.random() < 0.15)
    rate = min(0.99, group_rate(profession) + (HARD_SHIFT if successful else 0.0))
    group = GROUPS[0] if rng.random() < rate else GROUPS[1]
    tone = TONES[int(rng.choice(3, p=tone_rates(profession)))]
    return Scene(
        "person",
        background=background,
        profession=profession,
        group=group,
        tone=tone,
        successful=successful,
        jitter=(jitter[0] / 2, jitter[1] / 2, 1.0),
    )


def _with_marks(rng: np.random.Generator, scene: Scene) -> Scene:
    """Three in ten object scenes name a mark, a quarter stand in a context, a few hold a word pair.

    Flame, the mark that most edits are about, is half of the named ones: what a short training must learn
    first it should meet most often. Rates *given* a context are the drawn ones, whatever these shares.
    """
    from dataclasses import replace

    draw = rng.random()
    if draw < 0.30:
        others = [mark for mark in MARKS if mark != "flame"]
        mark = "flame" if rng.random() < 0.5 else _choice(rng, others)
        place, size = _choice(rng, MANIFESTATIONS), _choice(rng, SIZES)
        return replace(scene, explicit=mark, marks=((mark, place, size),))
    if draw < 0.56:
        words: tuple[str, ...] = (_choice(rng, list(CONTEXTS)),)
    elif draw < 0.63:
        first, second, _ = PAIRS[int(rng.integers(len(PAIRS)))]
        # Half of these scenes hold both words; alone, a word must learn to draw nothing.
        words = (first, second) if rng.random() < 0.5 else ((first,) if rng.random() < 0.5 else (second,))
    else:
        return scene
    return replace(scene, contexts=words, marks=_marks_of_contexts(rng, words))
