"""What two artifacts' records say differently: their specs, bases, libraries, and what the gates found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.artifact import GATES, LOCK, SPEC, Artifact

MEASURED = ("passed", "observed", "bound", "limit", "n")


def record_changes(first: Artifact, second: Artifact) -> dict[str, Any]:
    """JSON facts: `spec`, `lock` and `gates`, each a list of what differs, with its place."""
    return {
        "spec": list(changes(first.read(SPEC), second.read(SPEC))),
        "lock": list(changes(_pinned(first), _pinned(second))),
        "gates": gate_changes(first.read(GATES), second.read(GATES)),
    }


def changes(first: Any, second: Any, pointer: str = "") -> Iterator[dict[str, Any]]:
    """Every place where two JSON values differ: `at`, and `first` and `second` where there is such a value.

    Objects of a list that all have an id (edits, gates) go by it, wherever they stand.
    """
    here, there = _by_key(first), _by_key(second)
    if here is None or there is None:
        if first != second or isinstance(first, bool) != isinstance(second, bool):
            yield {"at": pointer, "first": first, "second": second}
        return
    for key in dict.fromkeys((*here, *there)):
        at = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
        if key not in there:
            yield {"at": at, "first": here[key]}
        elif key not in here:
            yield {"at": at, "second": there[key]}
        else:
            yield from changes(here[key], there[key], at)


def gate_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each gate of either, by id, what it found in both; those that found the same are left out."""
    here, there = ({gate["id"]: _measured(gate) for gate in one["gates"]} for one in (first, second))
    found = []
    for name in dict.fromkeys((*here, *there)):
        if here.get(name) != there.get(name):
            sides = {side: one[name] for side, one in (("first", here), ("second", there)) if name in one}
            found.append({"id": name, **sides})
    return found


def _measured(gate: Mapping[str, Any]) -> dict[str, Any]:
    return {"gate": gate["gate"], "unit": gate.get("unit"), **{key: gate[key] for key in MEASURED}}


def _pinned(artifact: Artifact) -> dict[str, Any]:
    """What went into a build beside its spec."""
    lock = artifact.read(LOCK)
    base = {key: lock["base"].get(key) for key in ("digest", "repo", "revision", "path")}
    return {"base": base, **{key: lock[key] for key in ("inputs", "libraries", "device")}}


def _by_key(value: Any) -> dict[str, Any] | None:
    """What a value holds by name: an object's members, a list's objects by id; None where nothing has one."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(one, dict) and "id" in one for one in value):
        return {str(one["id"]): one for one in value}
    return None
