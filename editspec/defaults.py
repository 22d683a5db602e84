"""Writes every default into a spec, so that what was meant is also what is stored, digested and shown."""

from __future__ import annotations

import copy
import re
import unicodedata
from typing import Any

from editspec.schema import applicable, schema
from editspec.templates import TEMPLATES

# SLD (Schramowski et al. 2023), table of configurations: warm-up, s_S, lambda, s_m, beta_m
_SLD_PRESETS: dict[str, dict[str, float]] = {
    "weak": {"warmup": 15, "scale": 20, "threshold": 0.0, "momentum_scale": 0.0, "momentum_beta": 0.0},
    "medium": {"warmup": 10, "scale": 1000, "threshold": 0.01, "momentum_scale": 0.3, "momentum_beta": 0.4},
    "strong": {"warmup": 7, "scale": 2000, "threshold": 0.025, "momentum_scale": 0.5, "momentum_beta": 0.7},
    "max": {"warmup": 0, "scale": 5000, "threshold": 1.0, "momentum_scale": 0.5, "momentum_beta": 0.7},
}


def with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """A copy of a structurally valid spec with all defaults: the schema's, then those that hang on others."""
    filled = copy.deepcopy(document)
    filled.pop("$schema", None)  # tells an editor where the schema is; says nothing about the edits
    _fill(filled, schema())
    for number, edit in enumerate(filled["edits"], start=1):
        _complete_edit(edit, number)
    for gate in filled["gates"]:
        _complete_gate(gate, filled)
    return filled


def plain(concept: str) -> str:
    """A concept as the tokenizers see it: case, spacing and Unicode composition make no difference."""
    return " ".join(unicodedata.normalize("NFC", concept).casefold().split())


def words_of(edit: dict[str, Any]) -> list[str]:
    """What an edit removes, in its words: concept and aliases, or what it shifts or guides away from."""
    if edit["edit"] in ("erase", "ablate"):
        return [edit["concept"], *edit.get("aliases", [])]
    if edit["edit"] == "shift":
        directions = edit["direction"] if isinstance(edit["direction"], list) else [edit["direction"]]
        return [d["negative_prompt"] for d in directions if "negative_prompt" in d]
    if edit["edit"] == "guide":
        return [c if isinstance(c, str) else c["concept"] for c in edit.get("away_from", [])]
    return []


def _fill(instance: dict[str, Any] | list[Any], part: Any) -> None:
    for found in applicable(part, instance):
        if isinstance(instance, list):
            for item in instance:
                if "items" in found and isinstance(item, dict | list):
                    _fill(item, found["items"])
            continue
        for key, rule in found.get("properties", {}).items():
            if key not in instance:
                default = next((r["default"] for r in applicable(rule, None) if "default" in r), None)
                if default is None:
                    continue
                instance[key] = copy.deepcopy(default)
            if isinstance(instance[key], dict | list):
                _fill(instance[key], rule)


def _complete_edit(edit: dict[str, Any], number: int) -> None:
    kind = edit["edit"]
    if "id" not in edit:
        words = words_of(edit)
        edit["id"] = f"{kind}-{slug(words[0]) if words else ''}".rstrip("-")[:64]
        if edit["id"] == kind:
            edit["id"] = f"{kind}-{number}"
    takes_templates = (kind == "erase" and edit["method"] == "closed-form") or (
        kind == "ablate" and edit["kind"] != "image"
    )
    if takes_templates:
        edit.setdefault("templates", list(TEMPLATES[edit["kind"]]))
    if kind == "guide" and edit["method"] == "sld":
        for key, value in _SLD_PRESETS[edit["preset"]].items():
            edit.setdefault(key, value)


def _complete_gate(gate: dict[str, Any], spec: dict[str, Any]) -> None:
    name = gate["gate"]
    concept = gate.get("concept")
    gate.setdefault("id", (f"{name}-{slug(concept)}" if concept else name).rstrip("-")[:64])
    if "kind" not in gate:
        kinds = [
            e.get("kind") for e in spec["edits"] if concept and plain(concept) in map(plain, words_of(e))
        ]
        gate["kind"] = next((kind for kind in kinds if kind in TEMPLATES), "object")
    if name in ("preserved", "drift"):
        gate.setdefault("concepts", list(spec["preserve"]["concepts"]))
    if name != "drift":
        gate.setdefault("prompts", list(TEMPLATES[gate["kind"]]))


def slug(text: str) -> str:
    """A concept as part of an id: ASCII letters, digits and dashes."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")
