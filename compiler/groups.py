"""The prompts of a `balance` edit: neutral ones, each of them under every group, and the wanted shares."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from editspec.templates import fill

if TYPE_CHECKING:
    from editspec import Balance


@dataclass(frozen=True)
class Neutral:
    """A prompt that names no group, and the same prompt under each group, in the order of `group_names`."""

    prompt: str
    named: tuple[str, ...]
    template: str
    """What the edit lists; prompts of one template are alike but for the profession."""
    subject: str
    """The profession; of a whole prompt, that prompt."""


def group_names(edit: Balance) -> tuple[str, ...]:
    """Every group; with several attributes every combination, its words in the order of the attributes."""
    return tuple(" ".join(combination) for combination in product(*edit.groups))


def group_shares(edit: Balance) -> tuple[float, ...]:
    """The wanted share of each group: as given, else equal."""
    count = len(group_names(edit))
    return edit.shares or (1.0 / count,) * count


def neutral_prompts(edit: Balance) -> tuple[Neutral, ...]:
    """All neutral prompts, each once: every template with every profession, and whole prompts as they are.

    A template goes through all professions before the next one begins.
    """
    found: dict[str, Neutral] = {}
    for template in edit.prompts:
        for profession in edit.professions if "{}" in template else ("",):
            prompt = fill(template, profession)
            named = tuple(_named(edit, template, profession, group) for group in group_names(edit))
            found.setdefault(prompt, Neutral(prompt, named, template, profession or prompt))
    return tuple(found.values())


def _named(edit: Balance, template: str, profession: str, group: str) -> str:
    """How `group_template` names a group: at the profession's place in the prompt, or at the whole prompt."""
    written = edit.group_template.replace("{group}", group)
    if "{profession}" in written:
        return fill(template, written.replace("{profession}", profession))
    return written.replace("{prompt}", fill(template, profession))
