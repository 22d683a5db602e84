"""Says what is wrong with a spec in the words of the spec, not in those of the JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from editspec.errors import Diagnostic, closest, did_you_mean, listed, quoted
from editspec.places import child
from editspec.schema import applicable, schema
from editspec.source import Source

_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}


def explained(source: Source, error: Any) -> Iterator[Diagnostic]:
    """The diagnostics for one `jsonschema.ValidationError`."""
    pointer = ""
    for step in error.absolute_path:
        pointer = child(pointer, step)
    explain = _EXPLANATIONS.get(error.validator)
    if explain is None:
        yield source.diagnostic(pointer, error.message)
    else:
        yield from explain(source, pointer, error)


def _unknown_keys(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    known = [key for key in error.schema.get("properties", {}) if not key.startswith("$")]
    free = [key for key in known if key not in error.instance]
    for key in error.instance:
        if key in error.schema.get("properties", {}):
            continue
        owner = _other_owner(key, error.instance)
        if pointer == "/base" and key == "path":
            owner = "a base has a 'path' or a 'repo', not both"
        if owner:
            remedy = owner
        else:
            guess = closest(key, free)
            remedy = f"did you mean {quoted(guess)}?" if guess else did_you_mean(key, known, "the keys here")
        yield source.diagnostic(
            child(pointer, key), f"unknown key {quoted(key)}{_in_what(error.instance)}", remedy, key=True
        )


def _missing_keys(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    # jsonschema reports each missing key on its own and names it only in its message
    key = next(
        k for k in error.validator_value if k not in error.instance and error.message.startswith(repr(k))
    )
    known = _known_keys(error)
    stray = [k for k in error.instance if k not in known]
    if stray and any(closest(k, [n for n in known if n not in error.instance]) == key for k in stray):
        return  # the unknown key next to it already asks "did you mean"
    described = [
        part["description"] for part in applicable(known.get(key, {}), None) if "description" in part
    ]
    remedy = _HOW_TO_GIVE.get(key) or (described[0] if described else "")
    yield source.diagnostic(pointer, f"{quoted(key)} is missing{_in_what(error.instance)}", remedy)


_HOW_TO_GIVE = {
    "editspec": 'add "editspec": 1, the version of the language',
    "name": 'add "name": a name for the result, such as "sd15-hardened"',
    "base": 'add "base": {"path": "..."} or {"repo": "owner/name", "revision": "<40 hex digits>"}',
    "path": 'give {"path": "folder"}, or {"repo": "owner/name", "revision": "<40 hex digits>"}',
    "revision": "a Hub repository can change; pin a commit by its full hash, 40 hex digits",
    "edits": 'add "edits": [...], at least one',
    "anchor": "the wider concept it turns into, for example 'cat' for 'grumpy cat'",
    "max_drift": "such as 0.2: 0 is the same pictures as the base draws, 1 as far away as another seed",
}


def _wrong_type(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
    value = error.instance
    got = _named(value)
    remedy = ""
    if isinstance(value, str) and {"number", "integer"} & set(wanted) and _numeric(value):
        remedy = f"write it without quotes: {value.strip()}"
    elif isinstance(value, float) and "integer" in wanted:
        remedy = f"the nearest is {round(value)}" if abs(value) < 1e15 else ""
    elif isinstance(value, str) and wanted == ["array"]:
        remedy = f"a list of one is written [{json.dumps(value, ensure_ascii=False)[:60]}]"
    elif not pointer:
        remedy = 'a spec is an object: {"editspec": 1, "name": ..., "base": ..., "edits": [...]}'
    elif isinstance(value, str) and pointer == "/base":
        remedy = f'write {{"path": {json.dumps(value, ensure_ascii=False)[:60]}}}'
    elif value is None:
        remedy = "leave the key out to get its default"
    yield source.diagnostic(
        pointer, f"expected {listed([_TYPES[w] for w in wanted], 'or')}, got {got}", remedy
    )


def _not_on_offer(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    offered = [str(option) for option in error.validator_value]
    key = pointer.rpartition("/")[2]
    noun = {"edit": "kind of edit", "gate": "gate"}.get(key, key)
    value = error.instance
    if not isinstance(value, str):
        yield source.diagnostic(
            pointer, f"expected one of {listed(map(quoted, offered), 'or')}, got {_named(value)}"
        )
        return
    guess = closest(value, offered)
    there = f"there {'are' if len(offered) > 1 else 'is'} {listed(map(quoted, offered))}"
    remedy = f"did you mean {quoted(guess)}? {there}" if guess else there
    yield source.diagnostic(pointer, f"no {noun} called {quoted(value)}", remedy)


def _wrong_constant(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    shown = json.dumps(error.validator_value)
    yield source.diagnostic(
        pointer,
        f"this is version {shown} of the language, not {json.dumps(error.instance)[:40]}",
        f"write {shown}",
    )


def _bad_pattern(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    says = error.schema.get("patternErrorMessage", "")
    remedy = ""
    key = pointer.rpartition("/")[2]
    value = error.instance
    if key == "revision":
        remedy = "a branch such as 'main' moves; copy the full hash from the repository's list of commits"
    elif value == "":
        says, remedy = f"this is empty; {says}", ""
    elif value != value.strip():
        remedy = f"write {quoted(value.strip())}"
    elif key == "license" and value.lower() != value:
        remedy = f"write {quoted(value.lower())}"
    yield source.diagnostic(
        pointer, says or f"{quoted(value)} does not match {error.validator_value}", remedy
    )


def _out_of_range(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    relation = {  # "must be ..."
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "more than",
        "exclusiveMaximum": "less than",
    }[error.validator]
    key = pointer.rpartition("/")[2]
    remedy = ""
    if key in ("max_rate", "max_loss", "confidence") and 1 <= error.instance <= 100:
        remedy = f"it is a fraction: {error.instance} % is {error.instance / 100:g}"
    subject = "this" if key.isdigit() else quoted(key)
    yield source.diagnostic(
        pointer,
        f"{subject} must be {relation} {_named(error.validator_value)}, not {_named(error.instance)}",
        remedy,
    )


def _too_few_or_many(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    limit = error.validator_value
    things = "characters" if error.validator.endswith("Length") else "items"
    count = len(error.instance)
    if error.validator.startswith("min"):
        what = "this is empty" if count == 0 else f"this has {count} {things}"
        yield source.diagnostic(
            pointer, f"{what}; at least {limit} {things if limit > 1 else things[:-1]} needed"
        )
    else:
        yield source.diagnostic(pointer, f"this has {count} {things}; at most {limit} are taken")


def _repeated(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    seen: list[Any] = []
    for index, item in enumerate(error.instance):
        if item in seen:
            yield source.diagnostic(
                child(pointer, index), f"{json.dumps(item, ensure_ascii=False)[:60]} is in this list twice"
            )
        seen.append(item)


def _alternatives(source: Source, pointer: str, error: Any) -> Iterator[Diagnostic]:
    """Our anyOf and oneOf only say which keys must be there."""
    keys = [option["required"][0] for option in error.validator_value]
    present = [key for key in keys if key in error.instance]
    if present:
        yield source.diagnostic(
            pointer, f"{listed(map(quoted, present))} exclude each other", "give one of them"
        )
    else:
        yield source.diagnostic(
            pointer, f"{listed(map(quoted, keys), 'or')} is missing{_in_what(error.instance)}"
        )


_EXPLANATIONS: dict[str, Any] = {
    "additionalProperties": _unknown_keys,
    "required": _missing_keys,
    "type": _wrong_type,
    "enum": _not_on_offer,
    "const": _wrong_constant,
    "pattern": _bad_pattern,
    "uniqueItems": _repeated,
    "anyOf": _alternatives,
    "oneOf": _alternatives,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _out_of_range),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), _too_few_or_many),
}


def _known_keys(error: Any) -> dict[str, Any]:
    """Keys that the object may have, from every branch of the schema that speaks about it."""
    known: dict[str, Any] = {}
    for part in applicable(error.schema, error.instance):
        known.update(part.get("properties", {}))
    return known


def _other_owner(key: str, instance: dict[str, Any]) -> str:
    """For a key that another method of the same kind of edit has: which."""
    kind = instance.get("edit")
    definitions = schema()["$defs"]
    if not isinstance(kind, str) or kind not in definitions:
        return ""
    chooser = next((c for c in ("method", "kind") if c in definitions[kind].get("properties", {})), None)
    if chooser is None:
        return ""
    rule = definitions[kind]["properties"][chooser]
    owners = [
        option
        for option in rule["enum"]
        if any(
            key in part.get("properties", {})
            for part in applicable(definitions[kind], {**instance, chooser: option})
        )
    ]
    if not owners:
        return ""
    mine = instance.get(chooser, rule.get("default"))
    where = f"{chooser} {listed(map(quoted, owners), 'or')}"
    return f"it belongs to {where}; this edit has {chooser} {quoted(str(mine))}"


def _in_what(instance: dict[str, Any]) -> str:
    for key, noun in (("edit", "edit"), ("gate", "gate")):
        if isinstance(instance.get(key), str):
            method = instance.get("method")
            how = f" with method {quoted(method)}" if isinstance(method, str) and key == "edit" else ""
            return f" in {noun} {quoted(instance[key])}{how}"
    return ""


def _named(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)[:40]
    return "null" if value is None else "a list" if isinstance(value, list) else "an object"


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
