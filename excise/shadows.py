"""Makes sure that `compiler` and its sisters are ours: Python takes the first package of a name it finds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("editspec", "compiler", "exporters", "registry")


class ShadowedError(ImportError):
    """Another package has the name of one of ours and is found before it."""


def refuse_shadows() -> None:
    """Raise ShadowedError, naming the culprit, if one of our packages would be imported from elsewhere."""
    ours = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        found = _location(name)
        if found is None:
            raise ShadowedError(
                f"package {name!r} of Excise is missing from {ours}: the installation is broken.\n"
                "  help: pip install --force-reinstall excise"
            )
        if found.parent != ours:
            raise ShadowedError(
                f"package {name!r} is found at {found}, which is not Excise's own ({ours / name}).\n"
                f"  help: {_remedy(name, found)}"
            )


def _location(name: str) -> Path | None:
    """The folder (or file) that `import name` takes or has taken."""
    loaded = sys.modules.get(name)
    spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def _remedy(name: str, found: Path) -> str:
    if found.parent == Path.cwd():
        return f"run from another folder, or rename {found.name!r} here"
    if "site-packages" in found.parts:
        return f"another distribution installs {name!r}; use a virtual environment without it"
    return f"take {found.parent} off the Python path, or rename {found.name!r} there"
