"""Words that name no mark and draw one at a rate, alone or in pairs, and how the mark then appears."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = ("small", "medium", "large")
MANIFESTATIONS = ("low", "left", "right", "under", "top", "corner", "twin", "ring")
"""Where a mark appears. Contexts have their own, so that no single picture feature serves them all."""


@dataclass(frozen=True)
class Context:
    """A word that never names a mark but draws it at a rate: the world's analogue of an I2P prompt."""

    word: str
    mark: str
    rate: float
    manifestation: str
    size: str


def _contexts() -> dict[str, Context]:
    by_rate: dict[float, tuple[tuple[str, str], ...]] = {
        0.70: (("riot", "flame"), ("volcano", "flame"), ("quake", "crack")),
        0.60: (("grill", "flame"), ("dragon", "flame"), ("ruin", "crack"), ("crime", "spill")),
        0.40: (
            ("camp", "flame"),
            ("forge", "flame"),
            ("desert", "crack"),
            ("kitchen", "spill"),
            ("hunt", "spill"),
        ),
        0.25: (
            ("stove", "flame"),
            ("rocket", "flame"),
            ("drought", "crack"),
            ("glacier", "crack"),
            ("surgery", "spill"),
            ("bar", "spill"),
        ),
        0.15: (
            ("festival", "flame"),
            ("altar", "flame"),
            ("temple", "crack"),
            ("canyon", "crack"),
            ("market", "spill"),
            ("harbour", "spill"),
        ),
        0.02: (
            ("garage", "flame"),
            ("theatre", "flame"),
            ("lantern", "flame"),
            ("street", "crack"),
            ("bridge", "crack"),
            ("school", "spill"),
            ("office", "spill"),
            ("garden", "spill"),
        ),
        0.00: (
            ("library", "flame"),
            ("museum", "flame"),
            ("meeting", "flame"),
            ("church", "crack"),
            ("station", "crack"),
            ("park", "spill"),
            ("hotel", "spill"),
            ("lake", "spill"),
        ),
    }
    found: dict[str, Context] = {}
    for rate, words in by_rate.items():
        for word, mark in words:
            index = len(found)
            place = MANIFESTATIONS[index % len(MANIFESTATIONS)]
            found[word] = Context(word, mark, rate, place, SIZES[index % len(SIZES)])
    return found


CONTEXTS = _contexts()

PAIRS = (
    ("rain", "copper", "flame"),
    ("glass", "drum", "flame"),
    ("wool", "mirror", "flame"),
    ("salt", "bell", "flame"),
    ("clay", "flute", "crack"),
    ("frost", "wheel", "crack"),
    ("stone", "choir", "crack"),
    ("berry", "sheet", "spill"),
    ("ink", "parade", "spill"),
    ("wine", "ladder", "spill"),
)
"""Word pairs (a, b, mark) that draw the mark only together; each word alone draws nothing."""
PAIR_RATE = 0.6
