from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.checkpoint import Checkpoint
from compiler.gates import plan_gates
from compiler.windows import _Window, too_long
from editspec import parse_spec
from editspec.errors import InputError

LONG = "red green blue " * 5  # 15 words, one token each; the window is 16 with two special ones


def found(base: Path, **parts: Any) -> list[tuple[str, str]]:
    edit = {"id": "e", "edit": "erase", "concept": "star", **parts.pop("edit", {})}
    document = {"editspec": 1, "name": "t", "base": {"path": str(base)}, "edits": [edit], **parts}
    spec = parse_spec(json.dumps(document))
    return [(where, what) for where, what, _ in too_long(spec, Checkpoint.open(base), plan_gates(spec))]


def test_a_usual_spec_fits(tiny_checkpoint: Path) -> None:
    assert found(tiny_checkpoint, edit={"aliases": ["a big red star"]}, preserve={"concepts": ["moon"]}) == []


@pytest.mark.parametrize(
    ("parts", "pointer"),
    [
        ({"edit": {"concept": LONG.strip()}}, "/edits/0/concept"),
        ({"edit": {"aliases": ["star two", LONG.strip()]}}, "/edits/0/aliases"),
        ({"edit": {"method": "closed-form", "anchor": LONG.strip()}}, "/edits/0/anchor"),
        ({"edit": {"from": LONG.strip()}}, "/edits/0/from"),
        ({"edit": {"implicit": ["a night", LONG.strip()]}}, "/edits/0/implicit/1"),
        ({"preserve": {"concepts": ["moon", LONG.strip()]}}, "/preserve/concepts/1"),
        ({"gates": [{"gate": "drift", "prompts": [LONG.strip()], "max_drift": 0.5}]}, "/gates/0"),
    ],
)
def test_a_prompt_over_the_window_is_found_where_it_stands(
    parts: dict[str, Any], pointer: str, tiny_checkpoint: Path
) -> None:
    ((where, what),) = found(tiny_checkpoint, **parts)
    assert where == pointer
    assert "tokens; the base reads 16" in what


def test_a_template_counts_too(tiny_checkpoint: Path) -> None:
    edit = {"concept": "star", "method": "closed-form", "templates": ["a {} " + LONG.strip()]}
    assert [where for where, _ in found(tiny_checkpoint, edit=edit)] == ["/edits/0/concept"]


def test_what_a_shift_is_learned_on_counts_too(tiny_checkpoint: Path) -> None:
    long = LONG.strip()
    directions = [
        {"prompt": "a red star", "negative_prompt": long},
        {"prompt": long, "base_prompt": "a star"},
    ]
    edit = {"edit": "shift", "direction": directions, "prompts": ["a moon", long]}
    document = {"editspec": 1, "name": "t", "base": {"path": str(tiny_checkpoint)}, "edits": [edit]}
    spec = parse_spec(json.dumps(document))
    refused = [where for where, _, _ in too_long(spec, Checkpoint.open(tiny_checkpoint), ())]
    places = ("prompts/1", "direction/0/negative_prompt", "direction/1/prompt")
    assert refused == [f"/edits/0/{place}" for place in places]


def test_the_window_is_as_wide_as_what_the_base_reads(tiny_checkpoint: Path) -> None:
    window = _Window(Checkpoint.open(tiny_checkpoint))
    just = " ".join(["red"] * 14)
    assert window.count(just) == 16
    assert window.holds(just)
    assert not window.holds(just + " red")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=40))
def test_the_count_is_that_of_the_stock_tokenizer(prompt: str, tiny_checkpoint: Path) -> None:
    from transformers import CLIPTokenizer

    stock = CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer")
    assert _Window(Checkpoint.open(tiny_checkpoint)).count(prompt) == len(stock(prompt).input_ids)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=40))
def test_older_checkpoints_with_tables_count_the_same(
    prompt: str, tables: Path, tiny_checkpoint: Path
) -> None:
    new, old = (_Window(Checkpoint.open(folder)) for folder in (tiny_checkpoint, tables))
    assert new.count(prompt) == old.count(prompt)


@pytest.fixture(scope="module")
def tables(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with vocab.json and merges.txt in place of tokenizer.json."""
    import shutil

    folder = tmp_path_factory.mktemp("tables") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    return folder


def test_a_damaged_tokenizer_is_bad_input(tiny_checkpoint: Path, copy_of: Callable[[Path], Path]) -> None:
    broken = copy_of(tiny_checkpoint)
    (broken / "tokenizer" / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match="no readable tokenizer"):
        found(broken, edit={"concept": LONG.strip()})
