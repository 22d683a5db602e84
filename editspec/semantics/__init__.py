"""What only the whole spec shows: edits against each other, against what is kept, and against the gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from editspec.errors import Diagnostic
from editspec.semantics import conflicts, gates, single, whole
from editspec.semantics.walk import Document, Finding
from editspec.source import Source

CHECKS: tuple[Callable[[Document], Iterator[Finding]], ...] = (
    whole.ids_are_unique,
    whole.prompts_fit_the_window,
    whole.other_licences_are_named,
    conflicts.nothing_is_edited_twice,
    conflicts.nothing_removed_is_kept,
    conflicts.phrases_use_what_is_there,
    single.anchors_do_not_name_the_concept,
    single.directions_lead_somewhere,
    single.guidance_does_not_pull_both_ways,
    single.balances_add_up,
    gates.gates_judge_what_is_edited,
    gates.implicit_prompts_do_not_name_the_concept,
    gates.trials_can_show_the_limit,
    gates.relearning_goes_as_far_as_its_limit,
    gates.something_can_judge,
)


def semantic_errors(source: Source, spec: Document) -> list[Diagnostic]:
    """Every contradiction in a structurally valid spec with its defaults filled in."""
    return [source.diagnostic(*finding) for check in CHECKS for finding in check(spec)]
