"""Tells the compiler of the model that ships inside this package: the base called "miniature"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from compiler.base import register_embedded
from compiler.evaluators import register_embedded as register_evaluators
from compiler.licence import register_embedded as register_licence
from editspec import EvaluatorRef, InputError
from excise.miniature.assets import EVALUATORS, LICENCE, MODEL, evaluator_folder

NAME = "miniature"
DEMO = Path(__file__).parent / "miniature" / "demo.json"


@cache
def register() -> None:
    """Make `{"path": "miniature"}` mean the embedded model, judged by its oracles unless told otherwise."""
    register_embedded(NAME, _model)
    register_evaluators(NAME, _evaluators)
    register_licence(MODEL, LICENCE)


def _model() -> Path:
    if not (MODEL / "model_index.json").is_file():
        raise InputError(
            NAME, "its weights are missing from this installation", "install Excise from a wheel"
        )
    return MODEL


def _evaluators() -> Sequence[EvaluatorRef]:
    return tuple(EvaluatorRef(id=name, model=str(evaluator_folder(name).absolute())) for name in EVALUATORS)


def demo_spec() -> Path:
    """The spec that `excise demo` compiles."""
    return DEMO
