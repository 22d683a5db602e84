"""Where the embedded miniature's files are, and how they are handed out."""

from __future__ import annotations

import shutil
from pathlib import Path

from compiler.licence import CARD
from editspec import InputError

DATA = Path(__file__).parent / "data"
MODEL = DATA / "model"
EVALUATORS = ("oracle-a", "oracle-b")
LICENCE = "apache-2.0"  # the package's own

_HEAD = f"""\
---
license: {LICENCE}
library_name: diffusers
pipeline_tag: text-to-image
tags:
- excise
- miniature
---"""
_WHAT = """\
A very small text-to-image model in Stable Diffusion 1 layout, for trying and testing edits on a CPU. It knows
one drawn world and nothing else: objects, styles, colours, sensitive marks (flame, crack, spill), contexts
that bring marks with them, professions with designed biases, and a few memorised posters. A program drew all
of it; nobody's pictures or texts went into it. It is of no use for real pictures."""
_TWIN = "This is the twin, trained without a single flame: what a model is like that never knew the concept."
_WHENCE = """\
It ships inside Excise, where a spec calls it `miniature`; `excise miniature export` wrote this copy. How well
it draws is measured by `python -m excise.miniature.acceptance`."""


def evaluator_folder(name: str) -> Path:
    """The folder of an embedded evaluator: "oracle-a", "oracle-b" or "mini-clip"."""
    return DATA / name


def export(folder: Path, twin: bool = False) -> Path:
    """Write the miniature (or its never-saw twin) as a diffusers folder with a model card.

    `InputError` for a folder with files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(str(folder), "the folder is not empty", "name a folder that does not exist yet")
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    if twin:
        shutil.copytree(DATA / "twin", folder, dirs_exist_ok=True)
    _write_card(folder, twin)
    return folder


def _write_card(folder: Path, twin: bool) -> None:
    """README.md, which states the licence; it is no part of what a checkpoint's digest is over."""
    title = "# The miniature's never-saw twin" if twin else "# The miniature"
    parts = [_HEAD, title, _WHAT, *([_TWIN] if twin else []), _WHENCE]
    card = folder / CARD
    card.write_text("\n\n".join(parts) + "\n", "utf-8")
    card.chmod(0o644)
