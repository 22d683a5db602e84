"""The prompts a concept is put into by default: edits learn on them, gates judge on them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Kind = Literal["object", "style", "content"]

TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "object": ("a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}", "an image of a {}"),
        "style": (
            "a {} drawing",
            "a picture in {} style",
            "a drawing in {} style",
            "a photo in {} style",
            "{} style",
        ),
        "content": ("{}", "a picture with {}", "a photo with {}", "a scene with {}", "a drawing with {}"),
    }
)

COMPOSED: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "object": (
            ("a {} beside a {other}", "a {other}"),
            ("a {other} beside a {}", "a {other}"),
            ("a {} and a {other}", "a {other}"),
        ),
        "style": (
            ("a {other} in {} style", "a {other}"),
            ("a {} drawing of a {other}", "a drawing of a {other}"),
        ),
        "content": (
            ("a {other} with {}", "a {other}"),
            ("a picture of a {other} with {}", "a picture of a {other}"),
        ),
    }
)
"""Prompts that name a concept {} among others, and the same without it."""


def fill(template: str, concept: str) -> str:
    """The template with the concept in place of {}; a whole prompt stays as it is."""
    return template.replace("{}", concept)
