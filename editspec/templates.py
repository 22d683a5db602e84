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


def fill(template: str, concept: str) -> str:
    """The template with the concept in place of {}; a whole prompt stays as it is."""
    return template.replace("{}", concept)
