"""Excise, a model-editing compiler: the front door, and the only import that is documented.

    from excise import compile_spec, load_spec

    artifact = compile_spec(load_spec("spec.json"), Path("hardened"))

Names are imported when they are first used, so that `import excise` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.artifact import Artifact as Artifact
    from compiler.base import open_base as open_base
    from compiler.cache import StageCache as StageCache
    from compiler.checkpoint import Checkpoint as Checkpoint
    from compiler.plan import make_plan as make_plan
    from editspec import EditSpec as EditSpec
    from editspec import GateFailed as GateFailed
    from editspec import InputError as InputError
    from editspec import SpecErrors as SpecErrors
    from editspec import load_spec as load_spec
    from editspec import parse_spec as parse_spec
    from editspec import schema as schema
    from excise.commands.compile import build as compile_spec

    __version__: str

_PUBLIC = {
    "Artifact": ("compiler.artifact", "Artifact"),
    "Checkpoint": ("compiler.checkpoint", "Checkpoint"),
    "EditSpec": ("editspec", "EditSpec"),
    "GateFailed": ("editspec", "GateFailed"),
    "InputError": ("editspec", "InputError"),
    "SpecErrors": ("editspec", "SpecErrors"),
    "StageCache": ("compiler.cache", "StageCache"),
    "compile_spec": ("excise.commands.compile", "build"),
    "load_spec": ("editspec", "load_spec"),
    "make_plan": ("compiler.plan", "make_plan"),
    "open_base": ("compiler.base", "open_base"),
    "parse_spec": ("editspec", "parse_spec"),
    "schema": ("editspec", "schema"),
}

__all__ = [
    "Artifact",
    "Checkpoint",
    "EditSpec",
    "GateFailed",
    "InputError",
    "SpecErrors",
    "StageCache",
    "__version__",
    "compile_spec",
    "load_spec",
    "make_plan",
    "open_base",
    "parse_spec",
    "schema",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("excise")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'excise' has no attribute {name!r}")
    from excise.shadows import refuse_shadows

    refuse_shadows()
    module, attribute = _PUBLIC[name]
    if module != "editspec":
        from excise.embedded import register

        register()  # so that {"path": "miniature"} has a meaning
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
