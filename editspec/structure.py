"""Checks a spec against the JSON Schema; `explain` puts what the schema refuses into words."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from editspec.errors import Diagnostic, closest
from editspec.explain import explained
from editspec.schema import schema
from editspec.source import Source


@cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(schema())


def structure_errors(source: Source) -> list[Diagnostic]:
    """Everything about the spec that the schema refuses.

    A misspelt kind, method or gate hides what else is wrong with its edit; it is then read as if spelt right.
    """
    document = copy.deepcopy(source.scan.value)
    found: dict[Diagnostic, None] = {}
    for _ in range(3):  # a misspelt kind of edit may hide a misspelt method; nothing lies deeper
        repaired = False
        for error in _validator().iter_errors(document):
            found.update(dict.fromkeys(explained(source, error)))
            repaired |= error.validator == "enum" and _respell(document, error)
        if not repaired:
            break
    return list(found)


def _respell(document: Any, error: Any) -> bool:
    """Write the likeliest option in place of one that is not on offer; True if there is one."""
    *path, key = error.absolute_path
    if key not in ("edit", "gate", "method", "kind") or not isinstance(error.instance, str):
        return False
    guess = closest(error.instance, error.validator_value)
    if guess is None:
        return False
    for step in path:
        document = document[step]
    document[key] = guess
    return True
