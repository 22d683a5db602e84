"""Puts the JSON Schema together: one file is one kind of edit or gate, and the folder is their list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

JsonSchema = dict[str, Any]


def schema() -> JsonSchema:
    """The whole edit spec schema (JSON Schema 2020-12), self-contained; a copy that the caller may change."""
    document: JsonSchema = json.loads(json.dumps(_assembled()))
    return document


@cache
def _assembled() -> JsonSchema:
    root = _read("spec.json")
    definitions = _read("terms.json")
    for folder in ("edits", "gates"):
        for name in _stems(folder):
            definitions.update(_read(folder, f"{name}.json"))
    definitions["edit"] = _choice("edit", {kind: kind for kind in edit_kinds()}, "What to do.")
    definitions["gate"] = _choice("gate", {gate: f"gate-{gate}" for gate in gate_kinds()}, "What to test.")
    root["$defs"] = dict(sorted(definitions.items()))
    return root


@cache
def edit_kinds() -> tuple[str, ...]:
    """Every kind of edit that the language knows."""
    return tuple(_stems("edits"))


@cache
def gate_kinds() -> tuple[str, ...]:
    """Every gate that the language knows."""
    return tuple(_stems("gates"))


def resolved(part: Any) -> JsonSchema:
    """A subschema with its `$ref` followed; keywords beside the reference win."""
    while isinstance(part, dict) and "$ref" in part:
        target = _assembled()["$defs"][part["$ref"].removeprefix("#/$defs/")]
        part = {**target, **{k: v for k, v in part.items() if k != "$ref"}}
    return part if isinstance(part, dict) else {}


def applicable(part: Any, instance: Any) -> Iterator[JsonSchema]:
    """The subschema and every branch of it that speaks about this instance, references followed."""
    found = resolved(part)
    yield found
    branches = [*found.get("allOf", []), *([found] if "if" in found else [])]
    for branch in branches:
        if "if" in branch:
            chosen = branch.get("then" if _holds(branch["if"], instance) else "else")
            if chosen is not None:
                yield from applicable(chosen, instance)


def _holds(condition: JsonSchema, instance: Any) -> bool:
    """Whether an `if` of our schema holds. Ours use only type, required, and const or enum of properties."""
    wanted = condition.get("type")
    if wanted is not None and not isinstance(instance, {"object": dict, "array": list}[wanted]):
        return False
    if not isinstance(instance, dict):
        return True
    for key, rule in condition.get("properties", {}).items():
        if key in instance and instance[key] not in rule.get("enum", [rule.get("const")]):
            return False
    return all(key in instance for key in condition.get("required", []))


def _choice(key: str, definitions: dict[str, str], description: str) -> JsonSchema:
    """An object that `key` tells apart, so that a mistake is reported against the one kind that was meant."""
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"enum": list(definitions), "description": description}},
        "allOf": [
            {
                "if": {"required": [key], "properties": {key: {"const": value}}},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for value, name in definitions.items()
        ],
    }


def _stems(folder: str) -> list[str]:
    names = [entry.name for entry in (files("editspec") / "schemas" / folder).iterdir()]
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _read(*parts: str) -> JsonSchema:
    found: JsonSchema = json.loads(files("editspec").joinpath("schemas", *parts).read_text("utf-8"))
    return found
