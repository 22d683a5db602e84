from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from editspec import Gate, edit_kinds, gate_kinds, schema
from editspec.build import EDITS


def parts(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from parts(value)
    elif isinstance(node, list):
        for value in node:
            yield from parts(value)


def test_the_schema_is_valid_json_schema_2020_12_and_needs_nothing_outside_itself() -> None:
    document = schema()
    jsonschema.Draft202012Validator.check_schema(document)
    names = set(document["$defs"])
    references = {part["$ref"] for part in parts(document) if isinstance(part.get("$ref"), str)}
    assert {reference.removeprefix("#/$defs/") for reference in references} <= names
    assert references


def test_there_are_the_six_kinds_of_edit_and_each_has_a_value_class() -> None:
    assert set(edit_kinds()) == {"erase", "ablate", "shift", "guide", "balance", "respond"} == set(EDITS)


def test_there_are_the_six_gates() -> None:
    assert set(gate_kinds()) == {"erased", "implicit", "preserved", "neighbours", "drift", "relearned"}


@pytest.mark.parametrize("kind", edit_kinds())
def test_every_key_of_an_edit_reaches_its_value_class(kind: str) -> None:
    fields = {field.name for field in dataclasses.fields(EDITS[kind])}
    renamed = {"from": "from_concept", "direction": "directions"}
    definitions = schema()["$defs"]
    variants = [definitions[name] for name in definitions if name == kind or name.startswith(f"{kind}-")]
    keys = {renamed.get(key, key) for variant in variants for key in variant.get("properties", {})}
    assert keys - {"edit"} == fields


@pytest.mark.parametrize("gate", gate_kinds())
def test_every_key_of_a_gate_reaches_its_value_class(gate: str) -> None:
    fields = {field.name for field in dataclasses.fields(Gate)}
    assert set(schema()["$defs"][f"gate-{gate}"]["properties"]) <= fields


def test_unknown_keys_are_refused_in_every_object() -> None:
    open_objects = [
        part["properties"].keys()
        for part in parts(schema())
        if isinstance(part.get("properties"), dict)
        and part.get("additionalProperties") is not False
        and not {"const", "enum"} & {key for rule in part["properties"].values() for key in rule}
    ]
    assert open_objects == []


def test_the_caller_may_change_its_copy() -> None:
    schema()["$defs"].clear()
    assert schema()["$defs"]


def test_every_pattern_says_in_words_what_it_wants() -> None:
    silent = [
        part
        for part in parts(schema())
        if isinstance(part.get("pattern"), str) and "patternErrorMessage" not in part
    ]
    assert silent == []
