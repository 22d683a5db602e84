"""Turns a checked document with all its defaults into the frozen values of `model`."""

from __future__ import annotations

import dataclasses
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from editspec.edits import Ablate, Balance, Direction, Edit, Erase, Guide, Guided, Phrase, Respond, Shift
from editspec.model import EditSpec, EvaluatorRef, Gate, HubBase, HubModel, PathBase, Preserve, Publish
from editspec.source import Source

_Value = TypeVar("_Value")

EDITS: dict[str, type[Edit]] = {
    "erase": Erase,
    "ablate": Ablate,
    "shift": Shift,
    "guide": Guide,
    "balance": Balance,
    "respond": Respond,
}

_FIELD_TYPES: dict[type, dict[str, frozenset[Any]]] = {}


def build(document: dict[str, Any], source: Source | None = None) -> EditSpec:
    """The spec as a value. The document has passed every check and has its defaults."""
    return EditSpec(
        name=document["name"],
        base=_base(document["base"]),
        seed=int(document["seed"]),
        edits=tuple(build_edit(edit) for edit in document["edits"]),
        preserve=_made(Preserve, document["preserve"]),
        gates=tuple(_made(Gate, gate) for gate in document["gates"]),
        evaluators=tuple(_evaluator(evaluator) for evaluator in document["evaluators"]),
        publish=_made(Publish, document["publish"]),
        document=document,
        source=source,
    )


def build_edit(document: dict[str, Any]) -> Edit:
    """One edit as a value."""
    values = {key: value for key, value in document.items() if key != "edit"}
    kind = document["edit"]
    if kind == "erase" and "from" in values:
        values["from_concept"] = values.pop("from")  # `from` is a Python keyword
    elif kind == "shift":
        directions = values.pop("direction")
        listed = directions if isinstance(directions, list) else [directions]
        values["directions"] = tuple(_made(Direction, d) for d in listed)
    elif kind == "guide":
        for key in ("away_from", "toward"):
            values[key] = tuple(
                Guided(concept=c) if isinstance(c, str) else _made(Guided, c) for c in values.get(key, [])
            )
    elif kind == "balance":
        groups = values["groups"]
        values["groups"] = tuple(map(tuple, groups)) if isinstance(groups[0], list) else (tuple(groups),)
    elif kind == "respond":
        values["phrases"] = tuple(_phrase(p) for p in values["phrases"])
    return _made(EDITS[kind], values)


def _base(document: dict[str, Any]) -> PathBase | HubBase:
    return _made(HubBase, document) if "repo" in document else _made(PathBase, document)


def _evaluator(document: dict[str, Any]) -> EvaluatorRef:
    model = document["model"]
    return _made(
        EvaluatorRef, {**document, "model": model if isinstance(model, str) else _made(HubModel, model)}
    )


def _phrase(document: dict[str, Any]) -> Phrase:
    direction = document.get("direction")
    return _made(Phrase, {**document, "direction": direction and _made(Direction, direction)})


def _made(cls: type[_Value], values: dict[str, Any]) -> _Value:
    """An instance of a dataclass; JSON's one kind of number and list becomes the field's own."""
    if cls not in _FIELD_TYPES:
        _FIELD_TYPES[cls] = _field_types(cls)
    types = _FIELD_TYPES[cls]
    return cls(**{key: _cast(types[key], value) for key, value in values.items()})


def _field_types(cls: type) -> dict[str, frozenset[Any]]:
    hints = get_type_hints(cls)
    assert dataclasses.is_dataclass(cls)
    found = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        found[field.name] = frozenset(get_origin(option) or option for option in options)
    return found


def _cast(types: frozenset[Any], value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if float in types:
        return float(value)
    return int(value) if int in types else value
