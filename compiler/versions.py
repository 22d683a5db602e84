"""Which software a build ran on: the library versions that may change its bits."""

from __future__ import annotations

import platform
from importlib import metadata

LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pillow")


def library_versions() -> dict[str, str]:
    """Version by name: Excise, Python, and every library that a result depends on."""
    versions = {name: _version(name) for name in ("excise", *LIBRARIES)}
    return {"python": platform.python_version(), **versions}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a source tree, or an optional library
        return "absent"
