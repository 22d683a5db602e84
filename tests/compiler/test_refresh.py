"""Refreshing a bank: the student samples, the base labels, and training goes on with both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.bank import Bank
from compiler.blocks import block_steps, refresh_request
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.distil import Distilled, DistilSettings
from compiler.passes import PassContext, PassResult
from compiler.passes.ablate import AblateConcept
from compiler.passes.erase_esd import EraseEsd
from compiler.progress import Silent
from compiler.refresh import Refreshing, train_in_blocks
from compiler.sampling import predict
from compiler.seeds import gaussian
from compiler.selections import select
from compiler.teacher import Teacher
from compiler.unet import add_deltas
from editspec import EditSpec, Erase, parse_spec

STAR: dict[str, Any] = {
    "edit": "erase",
    "concept": "star",
    "steps": 12,
    "learning_rate": 0.002,
    "batch": 4,
    "trajectories": 4,
    "timesteps": 2,
    "sampling_steps": 3,
    "refresh": 2,
}


def _spec(**changed: Any) -> EditSpec:
    document = {"editspec": 1, "name": "test", "base": {"path": "tiny"}, "seed": 7}
    return parse_spec(json.dumps({**document, "edits": [{**STAR, **changed}]}))


@pytest.fixture(scope="module")
def base(telling_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(telling_checkpoint)


def _context(
    spec: EditSpec, base: Checkpoint, upstream: Mapping[str, torch.Tensor] | None = None
) -> PassContext:
    return PassContext(spec, base, upstream or {}, spec.seed, torch.device("cpu"), StageCache(), Silent())


def _run(spec: EditSpec, base: Checkpoint) -> PassResult:
    engine = EraseEsd() if EraseEsd().accepts(spec.edits[0]) else AblateConcept()
    return engine.run(spec.edits, _context(spec, base))


@given(st.integers(1, 500), st.integers(1, 20))
def test_blocks_share_the_steps_out_evenly(steps: int, blocks: int) -> None:
    found = block_steps(steps, blocks)
    assert len(found) == blocks
    assert sum(found) == steps
    assert max(found) - min(found) <= 1


def _watched(
    spec: EditSpec, base: Checkpoint, upstream: Mapping[str, torch.Tensor]
) -> tuple[list[tuple[Bank | None, DistilSettings]], Distilled, Teacher, dict[str, torch.Tensor]]:
    """Blocks that learn nothing but a known change, so that what is sampled in between is known too."""
    context, edit = _context(spec, base, upstream), spec.edits[0]
    assert isinstance(edit, Erase)
    teacher = Teacher(context)
    add_deltas(teacher.unet, upstream)
    names = select(base.weights("unet").entries, "cross-attention-kv")
    weights = dict(teacher.unet.named_parameters())
    change = {name: gaussian(weights[name].shape, 1, name) / 4 for name in names}
    asked: list[tuple[Bank | None, DistilSettings]] = []

    def block(fresh: Bank | None, settings: DistilSettings) -> Distilled:
        asked.append((fresh, settings))
        return Distilled(change, {"erase": [0.0] * settings.steps}, 10)

    refreshing = Refreshing(
        edit.refresh + 1,
        request=lambda number: refresh_request(edit, spec.seed, number, ("a star", "a photo of a star")),
        labels=lambda request: {"uncond": None, "cond": request.prompts},
    )
    done = train_in_blocks(context, teacher, DistilSettings(9, 1e-3, 7), refreshing, block)
    return asked, done, teacher, change


def test_the_schedule_goes_on_and_rows_add_up_from_block_to_block(base: Checkpoint) -> None:
    asked, done, _, change = _watched(_spec(), base, {})
    assert [(one.done, one.steps, one.whole) for _, one in asked] == [(0, 3, 9), (3, 3, 9), (6, 3, 9)]
    assert len({one.names for _, one in asked}) == 3, "each block draws batches of its own"
    rows = [0 if fresh is None else len(fresh) for fresh, _ in asked]
    assert rows == [0, 8, 16]
    # 3 blocks of 10, and twice 4 trajectories of 3 guided steps with two labels for each of 8 rows.
    assert done.evals == 3 * 10 + 2 * (2 * 4 * 3 + 2 * 8)
    assert all(torch.allclose(done.deltas[name], 3 * value) for name, value in change.items())


def test_the_student_draws_the_rows_and_the_base_alone_labels_them(base: Checkpoint) -> None:
    names = select(base.weights("unet").entries, "cross-attention-kv")
    upstream = {name: gaussian(base.weights("unet").entries[name].shape, 2, name) / 4 for name in names}
    asked, _, teacher, _ = _watched(_spec(), base, upstream)
    plain, _, _, _ = _watched(_spec(), base, {})
    fresh, other = asked[-1][0], plain[-1][0]
    assert fresh is not None
    assert other is not None
    late = fresh.column("step") > 0
    assert not torch.allclose(fresh.column("model_input")[late], other.column("model_input")[late])
    unet = Teacher(_context(_spec(), base)).unet
    rows = torch.arange(len(fresh))
    for column, texts in (("cond", teacher.encode(fresh.prompts)), ("uncond", teacher.unconditional)):
        read = texts.rows(fresh.column("prompt") if column == "cond" else [0] * len(fresh))
        with torch.no_grad():
            wanted = predict(unet, fresh.take("model_input", rows), fresh.take("timestep", rows), read)
        torch.testing.assert_close(fresh.take(column, rows), wanted)
    changed = add_to(unet, upstream)
    for name, weight in teacher.unet.named_parameters():
        assert torch.equal(weight, changed[name]), "the student ends as base plus upstream"


def add_to(unet: torch.nn.Module, deltas: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights after these changes."""
    add_deltas(unet, deltas)
    return dict(unet.named_parameters())


@pytest.mark.parametrize("changed", [{}, {"edit": "ablate", "anchor": "moon"}], ids=["erase", "ablate"])
def test_refreshed_training_gives_the_same_bits_twice_and_other_than_without(
    base: Checkpoint, changed: dict[str, Any]
) -> None:
    spec = _spec(**changed)
    first, again, plain = _run(spec, base), _run(spec, base), _run(_spec(**changed, refresh=0), base)
    assert first.record == again.record
    assert all(torch.equal(first.deltas[name], again.deltas[name]) for name in first.deltas)
    assert any(not torch.equal(first.deltas[name], plain.deltas[name]) for name in first.deltas)
    losses = first.record["loss"]["ablate" if changed else "erase"]
    assert losses[-1] < losses[0]
