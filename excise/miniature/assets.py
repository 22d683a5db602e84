"""Where the embedded miniature's files are, and how they are handed out."""

from __future__ import annotations

import shutil
from pathlib import Path

from editspec import InputError

DATA = Path(__file__).parent / "data"
MODEL = DATA / "model"
EVALUATORS = ("oracle-a", "oracle-b")


def evaluator_folder(name: str) -> Path:
    """The folder of an embedded evaluator: "oracle-a", "oracle-b" or "mini-clip"."""
    return DATA / name


def export(folder: Path, twin: bool = False) -> Path:
    """Write the miniature (or its never-saw twin) as a diffusers folder; refuses a folder with files."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(str(folder), "the folder is not empty", "name a folder that does not exist yet")
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    if twin:
        shutil.copytree(DATA / "twin", folder, dirs_exist_ok=True)
    return folder
