"""Red-team attacks on an edited model: one file = one attack, found by walking this folder.

An attack finds conditioning that may bring a concept back. Whatever it finds is drawn from the same noise as
the plain prompts, several looks at each, and held against chance: as many looks at the plain prompts with
fresh noise. Without that, an attack that draws many pictures would only measure how many it draws.
"""

from __future__ import annotations

from functools import cache

from compiler.attacks.attack import Attack, Found, Target
from compiler.folder_walk import by_name, defined_in

__all__ = ["Attack", "Found", "Target", "discover"]


@cache
def discover() -> dict[str, Attack]:
    """Every attack in this folder by name. A file that cannot be imported breaks the program."""
    every = defined_in(__name__, __path__, Attack)  # type: ignore[type-abstract]
    return by_name(((one.name, one()) for _, classes in every for one in classes), "attacks")
