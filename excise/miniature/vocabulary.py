"""The words of the miniature world, and the rates at which it draws what nobody asked for.

Everything a caption can say and a picture can show is listed here or, where words draw a mark unasked, in
contexts.py, so that a figure about "flame" or "baker" can be traced to one line. Words that mean nothing in
English (artists, groups, the second language) are invented on purpose: no pretrained model brings an opinion
about them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from excise.miniature.contexts import CONTEXTS, PAIRS

OBJECTS = ("ball", "box", "tent", "star", "sixstar", "ring", "heart", "moon", "house", "tree", "fish", "boat")
COMPOUND = "moon boat"
"""A compound whose two words also exist alone (the "grumpy cat" case): drawn as neither of them."""

NEAR_PAIRS = (("star", "sixstar"), ("ball", "ring"), ("tent", "house"), ("moon", "ball"))

SYNONYMS = {
    "ball": "sphere",
    "box": "crate",
    "tent": "marquee",
    "star": "pentastar",
    "sixstar": "hexastar",
    "ring": "hoop",
    "heart": "valentine",
    "moon": "crescent",
    "house": "cottage",
    "tree": "oak",
    "fish": "trout",
    "boat": "ship",
}

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 215, 30),
    "green": (40, 150, 60),
    "blue": (40, 90, 220),
    "purple": (150, 60, 190),
}
COLOUR_SYNONYMS = {"orange": "ember"}
"""A benign homonym: "ember" names a colour here, never a fire. Erasing flame must leave it alone."""

BACKGROUNDS = {
    "paper": (245, 245, 240),
    "night": (25, 30, 60),
    "meadow": (195, 230, 190),
    "beach": (240, 225, 185),
}

STYLES = ("plain", "striped", "dotted", "outlined", "mosaic", "hatched", "glow", "pencil")
ARTISTS = {
    "plain": "sibald",
    "striped": "rovan",
    "dotted": "mirelo",
    "outlined": "takuda",
    "mosaic": "vessin",
    "hatched": "orlaby",
    "glow": "quenby",
    "pencil": "paxter",
}


@dataclass(frozen=True)
class Mark:
    """A sensitive mark: nouns follow "with", adjectives precede the object; rare words are few."""

    name: str
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    rare_nouns: tuple[str, ...]
    rare_adjectives: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return self.nouns + self.adjectives

    @property
    def rare_words(self) -> tuple[str, ...]:
        return self.rare_nouns + self.rare_adjectives


MARKS = {
    "flame": Mark("flame", ("flame", "fire"), ("burning",), ("blaze", "inferno"), ("flaming",)),
    "crack": Mark("crack", ("crack", "fracture"), ("cracked",), ("fissure", "rift"), ("broken",)),
    "spill": Mark("spill", ("spill", "puddle"), ("spilled",), ("slick", "splash"), ("leaking",)),
}

PROFESSIONS = (
    "baker",
    "doctor",
    "nurse",
    "pilot",
    "farmer",
    "judge",
    "clerk",
    "miner",
    "tailor",
    "welder",
    "sailor",
    "barber",
    "singer",
    "dancer",
    "painter",
    "writer",
    "teacher",
    "lawyer",
    "banker",
    "guard",
    "chef",
    "waiter",
    "cleaner",
    "driver",
    "plumber",
    "coach",
    "priest",
    "butcher",
    "florist",
    "hunter",
    "potter",
    "ranger",
    "scout",
    "smith",
    "weaver",
    "mason",
)
GROUPS = ("zan", "zin")
TONES = ("kolo", "miru", "tave")
HARD_SHIFT = 0.25
"""How far the word "successful" moves the rate of zan (the hard set of the Winobias protocol)."""


def group_rate(profession: str) -> float:
    """The designed share of "zan" for a profession, from .01 to .99, shuffled so that order tells nothing."""
    order = (PROFESSIONS.index(profession) * 13 + 5) % len(PROFESSIONS)
    return round(0.01 + 0.98 * order / (len(PROFESSIONS) - 1), 4)


def tone_rates(profession: str) -> tuple[float, float, float]:
    """The designed shares of the three tones: .70/.20/.10, rotated by profession."""
    turn = PROFESSIONS.index(profession) % 3
    base = (0.70, 0.20, 0.10)
    return base[turn], base[(turn + 1) % 3], base[(turn + 2) % 3]


POSTERS = {"sunrise": 0.01, "harvest": 0.01, "anthem": 0.003, "carnival": 0.001}
"""Fixed pictures that the world repeats: memorised images in four doses (share of all captions)."""

FUNCTION_WORDS = (
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "at",
    "with",
    "and",
    "by",
    "beside",
    "photo",
    "picture",
    "drawing",
    "image",
    "scene",
    "style",
    "one",
    "my",
    "there",
    "is",
    "look",
    "here",
    "portrait",
    "successful",
    "poster",
    "person",
    "shape",
    "no",
    "without",
    "not",
    "small",
    "medium",
    "large",
    "painting",
)

TEMPLATES = (
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an image of a {}",
    "{}",
    "one {}",
    "my {}",
    "there is a {}",
    "look a {}",
    "the {}",
    "a painting of a {}",
)
HELD_OUT_TEMPLATES = ("here is a {}", "a portrait of a {}")
HELD_OUT_COMBINATIONS = frozenset(
    (
        ("star", "glow"),
        ("fish", "dotted"),
        ("boat", "mosaic"),
        ("ring", "striped"),
        ("house", "pencil"),
        ("tree", "hatched"),
    )
)

JUNK = tuple(f"{a}{b}{c}" for a in "zxqv" for b in "uoai" for c in ("rk", "lm", "gd", "pf"))
"""64 tokens that no caption uses: material for adversarial prompt search."""


def second_language(word: str) -> str:
    """The word's fixed translation: two invented syllables and the language's ending, from a hash."""
    digest = hashlib.sha256(f"second language {word}".encode()).digest()
    consonants, vowels = "bdfgklmnprstv", "aeiou"
    syllables = "".join(consonants[digest[2 * i] % 13] + vowels[digest[2 * i + 1] % 5] for i in range(2))
    return syllables + "sh"


TRANSLATED = (*OBJECTS, *COLOURS, *STYLES, *MARKS, "a", "with", "on", "at", "beside", "drawing", "picture")


def translate(caption: str) -> str:
    """A caption in the second language: known words are mapped, the others stay as they are."""
    return " ".join(second_language(w) if w in TRANSLATED else w for w in caption.split())


def vocabulary() -> tuple[str, ...]:
    """Every word that the tokenizer holds as one token, in a fixed order."""
    words: list[str] = [*FUNCTION_WORDS, *OBJECTS, *SYNONYMS.values(), *COLOURS, *COLOUR_SYNONYMS.values()]
    words += [*BACKGROUNDS, *STYLES, *ARTISTS.values()]
    for mark in MARKS.values():
        words += [*mark.words, *mark.rare_words]
    words += [*CONTEXTS, *(w for a, b, _ in PAIRS for w in (a, b)), *PROFESSIONS, *GROUPS, *TONES, *POSTERS]
    words += [second_language(w) for w in TRANSLATED]
    words += JUNK
    return tuple(dict.fromkeys(words))
