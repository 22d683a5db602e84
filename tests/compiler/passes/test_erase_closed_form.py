"""Closed-form erasure end to end on a tiny checkpoint: from a spec's edits to changes of keys and values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.columns import ColumnSet
from compiler.passes import PassContext, PassResult, discover
from compiler.passes.erase_closed_form import EraseClosedForm
from compiler.progress import Silent
from editspec import EditSpec, parse_spec
from editspec.errors import InputError

ALONE: dict[str, Any] = {"edit": "erase", "method": "closed-form", "templates": [], "ridge": 1e-6}


def spec_of(edits: list[dict[str, Any]], **more: Any) -> EditSpec:
    numbered = [{"id": f"edit-{number}"} | edit for number, edit in enumerate(edits)]
    document = {"editspec": 1, "name": "test", "base": {"path": "tiny"}, "edits": numbered} | more
    return parse_spec(json.dumps(document))


def context_of(
    spec: EditSpec, folder: Path, cache: Path, upstream: dict[str, torch.Tensor] | None = None
) -> PassContext:
    checkpoint = Checkpoint.open(folder)
    return PassContext(
        spec=spec, checkpoint=checkpoint, upstream=upstream or {}, seed=0, device=torch.device("cpu"),
        cache=StageCache(cache), progress=Silent(),
    )  # fmt: skip


def run(spec: EditSpec, folder: Path, cache: Path, **more: Any) -> tuple[PassResult, PassContext]:
    context = context_of(spec, folder, cache, **more)
    return EraseClosedForm().run(spec.edits, context), context


def outputs(
    context: PassContext, result: PassResult, prompt: str, position: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What all matrices make of one position of a prompt, before and after."""
    state = context.text().encode([prompt])[0, position]
    before = torch.cat([context.weight(name) @ state for name in result.deltas])
    after = torch.cat([(context.weight(name) + delta) @ state for name, delta in result.deltas.items()])
    return before, after


@pytest.mark.parametrize("family", ["tiny_checkpoint", "tiny_checkpoint_sdxl"])
def test_the_concept_lands_where_the_anchor_was(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    spec = spec_of([ALONE | {"concept": "star", "anchor": "moon"}])
    result, context = run(spec, request.getfixturevalue(family), tmp_path)
    anchor, _ = outputs(context, result, "moon", 1)
    before, after = outputs(context, result, "star", 1)
    assert float((after - anchor).norm()) < 0.1 * float((before - anchor).norm())
    assert result.record["padding"] == "exact"
    assert result.record["left_undone"] < 0.1


def test_it_is_found_as_a_pass_and_changes_keys_and_values_only(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spec = spec_of([ALONE | {"concept": "star"}])
    (edit_pass,) = (found for found in discover() if found.accepts(spec.edits[0]))
    assert edit_pass.name == "erase/closed-form"
    entries = Checkpoint.open(tiny_checkpoint).weights("unet").entries
    targets = edit_pass.targets(spec.edits, entries)
    result, _ = run(spec, tiny_checkpoint, tmp_path)
    assert set(result.deltas) == set(targets)
    assert all(".attn2.to_k.weight" in name or ".attn2.to_v.weight" in name for name in targets)
    for name, delta in result.deltas.items():
        assert delta.dtype == torch.float32
        assert tuple(delta.shape) == entries[name].shape
        assert bool(delta.isfinite().all())
        assert float(delta.norm()) > 0


def test_every_matrix_equals_the_textbook_formula(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec = spec_of(
        [ALONE | {"concept": "star", "anchor": "shape", "ridge": 0.1}], preserve={"concepts": ["ring"]}
    )
    result, context = run(spec, tiny_checkpoint, tmp_path)
    gathered = ColumnSet(context.text())
    gathered.move("{}", "star", "shape")
    gathered.preserve("ring")
    columns = gathered.build()
    assert result.record["preserved_columns"] == columns.preserved.shape[1]
    for name, delta in result.deltas.items():
        weight = context.weight(name).double()
        kept = columns.preserved * columns.preserved_weights.sqrt()
        gram = columns.edited @ columns.edited.T + kept @ kept.T
        gram += 0.1 * torch.eye(len(gram), dtype=torch.float64)
        wanted = weight @ columns.anchors @ columns.edited.T
        wanted += weight @ kept @ kept.T + 0.1 * weight
        dense = wanted @ torch.linalg.inv(gram) - weight
        assert float((delta.double() - dense).norm() / dense.norm()) < 1e-6


def test_the_empty_prompt_does_not_move(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec = spec_of([ALONE | {"concept": "star", "anchor": "moon"}])
    result, context = run(spec, tiny_checkpoint, tmp_path)
    for position in range(context.text().window):
        before, after = outputs(context, result, "", position)
        assert float((after - before).norm()) < 0.02 * float(before.norm())


def test_null_space_keeps_preserved_concepts_where_they_were(
    tiny_checkpoint_sdxl: Path, tmp_path: Path
) -> None:
    edit = ALONE | {"concept": "star", "anchor": "moon", "preserve_mode": "null-space", "preserve": ["ring"]}
    result, context = run(spec_of([edit]), tiny_checkpoint_sdxl, tmp_path)
    before, after = outputs(context, result, "ring", 1)
    assert result.record["preserved_energy"] > 0.999
    assert float((after - before).norm()) < 2e-3 * float(before.norm())


def test_aliases_go_to_the_same_anchor(tiny_checkpoint_sdxl: Path, tmp_path: Path) -> None:
    spec = spec_of([ALONE | {"concept": "flame", "aliases": ["fire"], "anchor": "tree"}])
    result, context = run(spec, tiny_checkpoint_sdxl, tmp_path)
    anchor, _ = outputs(context, result, "tree", 1)
    for name in ("flame", "fire"):
        before, after = outputs(context, result, name, 1)
        assert float((after - anchor).norm()) < 0.5 * float((before - anchor).norm())


def test_two_edits_are_one_joint_solve(tiny_checkpoint: Path, tmp_path: Path) -> None:
    edits = [ALONE | {"concept": "star", "anchor": "moon"}, ALONE | {"concept": "flame", "anchor": "tree"}]
    together, context = run(spec_of(edits), tiny_checkpoint, tmp_path)
    gathered = ColumnSet(context.text())
    gathered.move("{}", "star", "moon")
    gathered.move("{}", "flame", "tree")
    from compiler.solve import solve

    columns = gathered.build()
    kept = {"preserved": columns.preserved, "preserved_weights": columns.preserved_weights}
    text_map = solve(columns.edited, ridge=1e-6, **kept).text_map(columns.anchors)
    for name, delta in together.deltas.items():
        torch.testing.assert_close(delta, (context.weight(name).double() @ text_map).float())


def test_a_larger_ridge_of_its_own_holds_that_edit_back(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = ALONE | {"concept": "flame", "anchor": "tree"}

    def left(ridge: float) -> float:
        spec = spec_of([ALONE | {"concept": "star", "anchor": "moon", "ridge": ridge}, other])
        result, context = run(spec, tiny_checkpoint, tmp_path)
        anchor, _ = outputs(context, result, "moon", 1)
        return float((outputs(context, result, "star", 1)[1] - anchor).norm())

    assert left(1e-6) < left(100.0)


def test_it_works_on_the_result_of_earlier_passes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec = spec_of([ALONE | {"concept": "star", "anchor": "moon"}])
    plain, context = run(spec, tiny_checkpoint, tmp_path)
    upstream = {name: context.weight(name) for name in plain.deltas}  # doubles every matrix
    doubled, _ = run(spec, tiny_checkpoint, tmp_path, upstream=upstream)
    for name, delta in plain.deltas.items():
        torch.testing.assert_close(doubled.deltas[name], 2 * delta)


def test_mined_neighbours_are_recorded_and_never_another_erased_concept(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    edits = [
        ALONE | {"concept": "star"},
        {"edit": "erase", "method": "esd", "concept": "sixstar", "aliases": ["cross"]},
    ]
    spec = spec_of(edits, preserve={"auto": 50})
    context = context_of(spec, tiny_checkpoint, tmp_path)
    result = EraseClosedForm().run(spec.edits[:1], context)
    mined = {word for word, _ in result.record["neighbours"]["edit-0"]}
    assert mined
    assert not {"star", "sixstar", "cross"} & mined
    assert "sixstar" in json.dumps(EraseClosedForm().reads(spec.edits[:1], spec))
    json.dumps(result.record)


def test_the_same_input_gives_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec = spec_of([{"edit": "erase", "method": "closed-form", "concept": "star"}], preserve={"auto": 2})
    first, _ = run(spec, tiny_checkpoint, tmp_path)
    second, _ = run(spec, tiny_checkpoint, tmp_path)
    assert all(torch.equal(first.deltas[name], second.deltas[name]) for name in first.deltas)
    assert first.record == second.record


def test_different_ways_of_preserving_cannot_be_solved_together(tiny_checkpoint: Path) -> None:
    edits = [ALONE | {"concept": "star"}, ALONE | {"concept": "flame", "preserve_mode": "null-space"}]
    spec = spec_of(edits)
    ((pointer, message),) = EraseClosedForm().check(spec.edits, spec, Checkpoint.open(tiny_checkpoint))
    assert pointer == "/edits/1/preserve_mode"
    assert "edit-0" in message


def test_a_concept_beyond_the_window_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec = spec_of([ALONE | {"concept": " ".join(["star"] * 20)}])
    with pytest.raises(InputError, match="window is 16"):
        run(spec, tiny_checkpoint, tmp_path)


def test_its_cost_has_no_evals_and_grows_with_the_work(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    few, many = (
        spec_of([ALONE | {"concept": "star"}]),
        spec_of([ALONE | {"concept": word} for word in ("star", "moon", "flame")]),
    )
    costs = [EraseClosedForm().cost(spec.edits, spec, checkpoint) for spec in (few, many)]
    assert [cost.evals for cost in costs] == [0, 0]
    assert 0 < costs[0].seconds < costs[1].seconds


def test_what_another_pass_is_for_stays_as_that_pass_left_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    star = ALONE | {"concept": "star", "anchor": "moon"}
    guide = {"edit": "guide", "away_from": ["crack"], "prompts": ["a red house"]}
    moved = []
    for edits in ([star], [star, guide]):
        spec = spec_of(edits)
        context = context_of(spec, tiny_checkpoint, tmp_path)
        result = EraseClosedForm().run(spec.edits[:1], context)
        before, after = outputs(context, result, "a red house", 3)
        moved.append(float((after - before).norm() / before.norm()))
    assert moved[1] < 0.1 * moved[0]
