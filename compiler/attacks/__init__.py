"""Red-team attacks on an edited model: one file = one attack, found by walking this folder.

An attack finds conditioning that may bring a concept back. Whatever it finds is drawn from the same noise as
the plain prompts, several looks at each, and held against chance: as many looks at the plain prompts with
fresh noise. Without that, an attack that draws many pictures would only measure how many it draws.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from compiler.attacks.attack import Attack, Found, Target

__all__ = ["Attack", "Found", "Target", "discover"]


@cache
def discover() -> dict[str, Attack]:
    """Every attack in this folder by name. A file that cannot be imported breaks the program."""
    found: dict[str, Attack] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for member in vars(loaded).values():
            if (
                inspect.isclass(member)
                and issubclass(member, Attack)
                and member.__module__ == loaded.__name__
                and not inspect.isabstract(member)
                and not member.__name__.startswith("_")  # what attacks share
            ):
                if member.name in found:
                    raise TypeError(f"two attacks are called '{member.name}'; a name must be its own")
                found[member.name] = member()
    return found
