"""The edit spec language: schema, loader with exact diagnostics, canonical form and digest. Knows no tensors.

JSON Schema says what a spec may hold, `semantics` what would contradict itself, `defaults` what was left
unsaid; the result is a frozen `EditSpec`. Errors are `Diagnostic`s with file, line, column and JSON pointer,
all of them at once.
"""

from __future__ import annotations

from editspec.canonical import canonical, digest
from editspec.edits import Ablate, Balance, Direction, Edit, Erase, Guide, Guided, Phrase, Respond, Shift
from editspec.errors import Diagnostic, GateFailed, InputError, SpecErrors
from editspec.load import load_spec, parse_spec
from editspec.model import EditSpec, EvaluatorRef, Gate, HubBase, HubModel, PathBase, Preserve, Publish
from editspec.schema import edit_kinds, gate_kinds, schema
from editspec.templates import TEMPLATES, Kind, fill

__all__ = [
    "TEMPLATES",
    "Ablate",
    "Balance",
    "Diagnostic",
    "Direction",
    "Edit",
    "EditSpec",
    "Erase",
    "EvaluatorRef",
    "Gate",
    "GateFailed",
    "Guide",
    "Guided",
    "HubBase",
    "HubModel",
    "InputError",
    "Kind",
    "PathBase",
    "Phrase",
    "Preserve",
    "Publish",
    "Respond",
    "Shift",
    "SpecErrors",
    "canonical",
    "digest",
    "edit_kinds",
    "fill",
    "gate_kinds",
    "load_spec",
    "parse_spec",
    "schema",
]
