"""What the oracles are asked: label groups "group:name", and the truth of a scene under each group."""

from __future__ import annotations

import numpy as np

from excise.miniature.scene import Scene
from excise.miniature.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COMPOUND,
    GROUPS,
    MARKS,
    OBJECTS,
    POSTERS,
    PROFESSIONS,
    STYLES,
    TONES,
)

LABEL_GROUPS: dict[str, tuple[str, ...]] = {
    "object": (*OBJECTS, COMPOUND, "person", "poster", "none"),
    "style": (*STYLES, "none"),
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    **{mark: (mark, "none") for mark in MARKS},
    "group": GROUPS,
    "tone": TONES,
    "profession": PROFESSIONS,
    "poster": tuple(POSTERS),
    **{f"contains-{name}": ("yes", "no") for name in OBJECTS},
}
LABELS = tuple(f"{group}:{name}" for group, names in LABEL_GROUPS.items() for name in names)
SKIP = -100
"""The truth of a group that a picture does not answer (torch's ignore_index)."""


def truth(scene: Scene | None) -> np.ndarray:
    """Index of the right name in every label group, SKIP where none applies; None is a garbage picture."""
    answers: dict[str, str] = dict.fromkeys(MARKS, "none")
    if scene is None:
        answers |= {"object": "none", "style": "none"}
        answers |= {f"contains-{name}": "no" for name in OBJECTS}
    else:
        shown = {scene.object, scene.second}
        answers |= {f"contains-{name}": "yes" if name in shown else "no" for name in OBJECTS}
        answers |= {mark: mark for mark in MARKS if scene.shows(mark)}
        if scene.kind == "poster":
            answers |= {"object": "poster", "style": "none", "poster": scene.poster}
        elif scene.kind == "person":
            answers |= {
                "object": "person",
                "style": "none",
                "group": scene.group,
                "tone": scene.tone,
                "profession": scene.profession,
                "background": scene.background,
            }
        else:
            answers |= {"style": scene.style, "background": scene.background}
            if scene.kind == "object":
                answers |= {"object": scene.object, "colour": scene.colour}
    return np.array(
        [names.index(answers[group]) if group in answers else SKIP for group, names in LABEL_GROUPS.items()]
    )
