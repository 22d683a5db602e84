"""Finds what a folder of plug-ins defines: one file is one pass, gate, adapter or attack, never listed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from typing import TypeVar

Kind = TypeVar("Kind")


def defined_in(
    package: str, paths: Iterable[str], kind: type[Kind]
) -> Iterator[tuple[str, list[type[Kind]]]]:
    """(module, its concrete classes of a kind) for each module of a package, in alphabetical order.

    Names that begin with "_" are what others share. A file that cannot be imported breaks the program.
    """
    for module in sorted(pkgutil.iter_modules(paths), key=lambda module: module.name):
        if module.name.startswith("_"):
            continue
        loaded = importlib.import_module(f"{package}.{module.name}")
        yield (
            loaded.__name__,
            [
                member
                for name, member in vars(loaded).items()
                if inspect.isclass(member)
                and issubclass(member, kind)
                and member.__module__ == loaded.__name__
                and not inspect.isabstract(member)
                and not name.startswith("_")
            ],
        )


def by_name(named: Iterable[tuple[str, Kind]], what: str) -> dict[str, Kind]:
    """All by name. Raises TypeError where two have one; `what` is what these are."""
    found: dict[str, Kind] = {}
    for name, one in named:
        if name in found:
            raise TypeError(f"two {what} are called '{name}'; a name must be its own")
        found[name] = one
    return found
