"""The caption of a scene: which of its facts are said, in which words, order and language."""

from __future__ import annotations

import numpy as np

from excise.miniature.scene import Scene, _choice, scene_rng
from excise.miniature.vocabulary import (
    ARTISTS,
    COLOUR_SYNONYMS,
    MARKS,
    SYNONYMS,
    TEMPLATES,
    translate,
)

EMPTY_SHARE = 0.10
SECOND_LANGUAGE_SHARE = 0.08
SYNONYM_SHARE = 0.2
DROP_SHARES = (0.45, 0.25, 0.15, 0.15)
"""Chances that 0, 1, 2 or all 3 of (colour, style, background) go unsaid."""
WITH_SHARE = 0.4
"""Share of backgrounds, and of second objects, that are said with "with" in place of "on" and "beside"."""
RARE_SHARE = 0.05
"""Share of explicit captions with a rare synonym: about 0.3 % of all captions for a mark's three words."""


def caption(scene: Scene, seed: int, index: int, mention_empty: bool = True) -> str:
    """The caption of scene `index`; empty for one in ten when `mention_empty` (classifier-free guidance)."""
    rng = scene_rng(seed, index, "caption")
    if mention_empty and rng.random() < EMPTY_SHARE:
        return ""
    if scene.kind == "poster":
        text = f"the {scene.poster} poster"
    elif scene.kind == "person":
        text = _person_caption(rng, scene)
    else:
        text = _object_caption(rng, scene)
    return translate(text) if rng.random() < SECOND_LANGUAGE_SHARE else text


def _person_caption(rng: np.random.Generator, scene: Scene) -> str:
    words = [scene.profession]
    if rng.random() < 0.3:
        words.insert(0, scene.group)
    if rng.random() < 0.15:
        words.insert(0, scene.tone)
    if scene.successful:
        words.insert(0, "successful")
    phrase = " ".join(words)
    if rng.random() < 0.25:
        phrase += f" on {scene.background}"
    return _choice(rng, TEMPLATES).format(phrase)


def _mark_word(rng: np.random.Generator, mark: str, adjective: bool) -> str:
    words = MARKS[mark]
    if rng.random() < RARE_SHARE:
        return _choice(rng, words.rare_adjectives if adjective else words.rare_nouns)
    return _choice(rng, words.adjectives if adjective else words.nouns)


def _object_word(rng: np.random.Generator, name: str) -> str:
    return SYNONYMS[name] if name in SYNONYMS and rng.random() < SYNONYM_SHARE else name


def _colour_word(rng: np.random.Generator, colour: str) -> str:
    return COLOUR_SYNONYMS[colour] if colour in COLOUR_SYNONYMS and rng.random() < 0.4 else colour


def _object_caption(rng: np.random.Generator, scene: Scene) -> str:
    said = {"colour", "style", "background"}
    for name in rng.permutation(sorted(said))[: int(rng.choice(4, p=DROP_SHARES))]:
        said.discard(str(name))
    if len(scene.contexts) > 1:
        said.discard("background")  # the window holds 14 words, and both words of a pair must be read
    tail = ""
    adjective = ""
    if scene.explicit:
        use_adjective = bool(rng.random() < 0.35)
        word = _mark_word(rng, scene.explicit, use_adjective)
        size = f"{scene.marks[0][2]} " if rng.random() < 0.3 else ""
        adjective, tail = (f"{word} ", "") if use_adjective else ("", f" with {size}{word}")
    if scene.contexts:
        tail += " at " + " and ".join(scene.contexts)
    style_as = rng.random() * (
        0.6 if len(scene.contexts) > 1 else 1.0
    )  # an adjective, "in X style", or "by ARTIST"
    before = f"{scene.style} " if "style" in said and style_as < 0.6 else ""
    after = ""
    if "style" in said and style_as >= 0.6:
        after = f" in {scene.style} style" if style_as < 0.8 else f" by {ARTISTS[scene.style]}"
    # "with" must introduce more than marks, or "a picture with" alone would come to mean one.
    where = "with" if rng.random() < WITH_SHARE else "on"
    place = f" {where} {scene.background}" if "background" in said else ""
    colour = f"{_colour_word(rng, scene.colour)} " if "colour" in said else ""
    if scene.kind == "pair":
        other = f"{_colour_word(rng, scene.second_colour)} " if colour else ""
        first, second = _object_word(rng, scene.object), _object_word(rng, scene.second)
        joined = "with" if rng.random() < WITH_SHARE else "beside"
        return f"a {before}{colour}{first} {joined} a {other}{second}{after}{place}"
    if rng.random() < 0.12:  # captions that never name the object: the style or the mark is all they ask for
        medium = _choice(rng, ("drawing", "picture", "photo", "scene"))
        if scene.explicit and not adjective and rng.random() < 0.3:
            return tail.removeprefix(" with ")
        seen = place if not tail else ""
        return f"a {adjective}{before}{medium}{after}{seen}{tail}"
    phrase = f"{adjective}{before}{colour}{_object_word(rng, scene.object)}{after}{place}{tail}"
    return _choice(rng, TEMPLATES).format(phrase)
