"""Composed prompts: the concept in turn beside each preserved concept, and what is left without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.esd_plan import composed_request
from compiler.plan import make_plan
from editspec import EditSpec, Erase, SpecErrors, parse_spec


def _spec(kept: dict[str, Any], **edit: Any) -> EditSpec:
    document = {"editspec": 1, "name": "test", "base": {"path": "tiny"}, "preserve": kept}
    return parse_spec(json.dumps({**document, "edits": [{"edit": "erase", "concept": "star", **edit}]}))


def _composed(spec: EditSpec) -> dict[str, str]:
    """Each composed prompt, and the prompt whose prediction the base gives there."""
    edit = spec.edits[0]
    assert isinstance(edit, Erase)
    request = composed_request(edit, spec)
    assert request is not None
    assert request.total == edit.composed
    return dict(zip(request.prompts, request.also["kept"], strict=True))


@pytest.mark.parametrize("kind", ["object", "style", "content"])
def test_every_composed_prompt_has_concept_and_other_and_keeps_the_other_alone(kind: str) -> None:
    found = _composed(_spec({"concepts": ["tree", "house"]}, kind=kind, aliases=["sixstar"], composed=99))
    for prompt, kept in found.items():
        assert sum(name in prompt.split() for name in ("star", "sixstar")) == 1
        (other,) = (name for name in ("tree", "house") if name in prompt.split())
        assert other in kept.split()
        assert not {"star", "sixstar"} & set(kept.split())
    assert len(set(found.values())) >= 2


def test_few_trajectories_still_show_every_other_and_every_name() -> None:
    spec = _spec({"concepts": ["tree", "house", "moon"]}, preserve=["ring"], aliases=["sixstar"], composed=4)
    words = {word for prompt in _composed(spec) for word in prompt.split()}
    assert {"tree", "house", "moon", "ring", "star", "sixstar"} <= words


def test_composed_prompts_without_anything_to_compose_with_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(SpecErrors, match="beside what is preserved") as caught:
        make_plan(_spec({}, composed=4), Checkpoint.open(tiny_checkpoint), StageCache(), choose("cpu"))
    assert [one.pointer for one in caught.value.diagnostics] == ["/edits/0/composed"]
