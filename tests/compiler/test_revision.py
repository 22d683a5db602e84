from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compiler import artifact as layout
from compiler.artifact import Artifact
from compiler.device import choose
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.pipeline import compile_spec
from compiler.revision import moved, recorded_runs, without
from compiler.safetensors_file import TensorEntry
from compiler.seeds import gaussian
from compiler.selections import select
from editspec import Edit, EditSpec, parse_spec
from editspec.errors import InputError, SpecErrors

UNET = "unet/diffusion_pytorch_model.safetensors"


class Nudge(EditPass):
    """Moves keys and values by noise of the edit's own, whatever other edits did."""

    name, version, order, merges = "erase/esd", 1, 10, False

    def accepts(self, edit: Edit) -> bool:
        return edit.edit == "erase" and edit.method == "esd"

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, "cross-attention-kv")

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Any) -> PassCost:
        return PassCost(7, 0.1, 10**6)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        (edit,) = edits
        weights = context.checkpoint.weights("unet")
        names = self.targets(edits, weights.entries)
        noise = {name: gaussian(weights.entries[name].shape, 0, edit.id, name) for name in names}
        return PassResult({name: 0.01 * noise[name] for name in names}, {"ran": edit.id})


def spec_for(base: Path, *edits: dict[str, Any], **more: Any) -> EditSpec:
    document = {"editspec": 1, "name": "t", "base": {"path": str(base)}, "edits": list(edits), **more}
    return parse_spec(json.dumps(document))


def esd(word: str) -> dict[str, Any]:
    return {"id": f"no-{word}", "edit": "erase", "concept": word, "method": "esd"}


def solved(word: str) -> dict[str, Any]:
    return {"id": f"no-{word}", "edit": "erase", "concept": word, "method": "closed-form", "anchor": "shape"}


def built(spec: EditSpec, out: Path, passes: Sequence[EditPass] | None = None) -> Artifact:
    from compiler.passes import discover

    chosen = [Nudge(), *(engine for engine in discover() if engine.name == "erase/closed-form")]
    return compile_spec(spec, out, device=choose("cpu"), passes=chosen if passes is None else passes)


def undone(artifact: Artifact, id: str, base: Path, out: Path) -> Artifact:
    revision = without(artifact, id)
    return built(
        parse_spec(json.dumps({**revision.spec.document, "base": {"path": str(base)}})), out, revision.passes
    )


@pytest.mark.parametrize("fixture", ["tiny_checkpoint", "tiny_checkpoint_fp16"])
@pytest.mark.parametrize("gone", ["star", "moon", "tree"])
def test_what_is_undone_leaves_not_even_a_rounding_error(
    fixture: str, gone: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(fixture)
    words = ["star", "moon", "tree"]
    artifact = built(spec_for(base, *map(esd, words)), tmp_path / "all")
    never = built(spec_for(base, *(esd(word) for word in words if word != gone)), tmp_path / "never")
    left = undone(artifact, f"no-{gone}", base, tmp_path / "left")
    assert left.path(UNET).read_bytes() == never.path(UNET).read_bytes()
    assert left.path(UNET).read_bytes() != artifact.path(UNET).read_bytes()
    for name in (layout.DELTAS, layout.PARTS):
        assert left.path(name).read_bytes() == never.path(name).read_bytes()
    runs = left.read(layout.EDITS)["passes"]
    assert [run["record"]["ran"] for run in runs] == [f"no-{word}" for word in words if word != gone]
    recorded = {run["key"] for run in artifact.read(layout.EDITS)["passes"]}
    assert {run["record"]["kept_from"] for run in runs} < recorded
    assert not {run["key"] for run in runs} & recorded  # a kept run never passes for a computed one


def test_an_edit_solved_together_with_others_is_taken_out_by_solving_the_others_again(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    edits = [esd("moon"), solved("star"), solved("heart")]
    artifact = built(spec_for(tiny_checkpoint, *edits), tmp_path / "all")
    never = built(spec_for(tiny_checkpoint, esd("moon"), solved("heart")), tmp_path / "never")
    revision = without(artifact, "no-star")
    assert (revision.kept, revision.solved) == ((("no-moon",),), (("no-heart",),))
    left = undone(artifact, "no-star", tiny_checkpoint, tmp_path / "left")
    assert left.path(UNET).read_bytes() == never.path(UNET).read_bytes()


def test_only_tensors_that_several_runs_moved_are_kept_in_parts(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    class Elsewhere(Nudge):
        def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
            names = select(entries, "cross-attention-kv")
            return names[:3] if edits[0].id == "no-star" else names[2:]

    artifact = built(spec_for(tiny_checkpoint, esd("star"), esd("moon")), tmp_path / "out", [Elsewhere()])
    totals, parts = load_file(artifact.path(layout.DELTAS)), load_file(artifact.path(layout.PARTS))
    (shared,) = {name.partition(".")[2] for name in parts}
    assert sorted(parts) == [f"0.{shared}", f"1.{shared}"]
    assert torch.equal(totals[shared], parts[f"0.{shared}"] + parts[f"1.{shared}"])
    one, two = (run.deltas() for run in recorded_runs(artifact))
    assert len(one) == 3
    assert one.keys() & two.keys() == {shared}
    assert all(torch.equal(delta, totals[name]) for name, delta in two.items() if name != shared)
    alone = built(spec_for(tiny_checkpoint, esd("star")), tmp_path / "alone")
    assert not alone.path(layout.PARTS).exists()


def test_gates_on_what_is_no_longer_edited_go_with_the_edit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    drift = {"gate": "drift", "prompts": ["a moon"], "max_drift": 1.0, "steps": 1, "trials": 1}
    erased = [{"gate": "erased", "concept": word, "max_rate": 0.5} for word in ("star", "tree")]
    judge = {"id": "judge", "model": "judge"}
    spec = spec_for(tiny_checkpoint, esd("star"), esd("tree"), gates=[drift, *erased], evaluators=[judge])
    artifact = built(spec_for(tiny_checkpoint, esd("star"), esd("tree")), tmp_path / "out")
    artifact.write(layout.SPEC, spec.document)
    gates = without(artifact, "no-star").spec.gates
    assert [(gate.gate, gate.concept) for gate in gates] == [("drift", None), ("erased", "tree")]


def test_unknown_and_only_edits_cannot_be_undone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    artifact = built(spec_for(tiny_checkpoint, esd("star")), tmp_path / "out")
    with pytest.raises(InputError, match="did you mean 'no-star'"):
        without(artifact, "no-sta")
    with pytest.raises(InputError, match="what is left without it is the base"):
        without(artifact, "no-star")


def test_a_record_that_contradicts_the_deltas_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    artifact = built(spec_for(tiny_checkpoint, esd("star"), esd("moon")), tmp_path / "out")
    parts = load_file(artifact.path(layout.PARTS))
    first = min(parts)
    save_file({**parts, first: parts[first] + 1}, artifact.path(layout.PARTS), {"format": "pt"})
    with pytest.raises(InputError, match="do not add up"):
        recorded_runs(artifact)[0].deltas()
    save_file({n: p for n, p in parts.items() if n != first}, artifact.path(layout.PARTS), {"format": "pt"})
    with pytest.raises(InputError, match="has no change of run 0"):
        recorded_runs(artifact)[0].deltas()


def test_rebasing_carries_what_was_distilled_and_solves_the_rest_again(
    tiny_checkpoint: Path, tmp_path: Path, copy_of: Any
) -> None:
    base = copy_of(tiny_checkpoint)
    weights = load_file(base / UNET)
    save_file({name: 1.5 * weight for name, weight in weights.items()}, base / UNET, {"format": "pt"})
    artifact = built(spec_for(tiny_checkpoint, esd("moon"), solved("star")), tmp_path / "out")
    revision = moved(artifact, {"path": str(base)}, carry=True)
    assert (revision.kept, revision.solved) == ((("no-moon",),), (("no-star",),))
    carried = built(revision.spec, tmp_path / "carried", revision.passes)
    afresh = built(moved(artifact, {"path": str(base)}, carry=False).spec, tmp_path / "afresh")
    assert carried.path(UNET).read_bytes() == afresh.path(UNET).read_bytes()  # Nudge is the same on any base
    again = moved(carried, {"path": str(tiny_checkpoint)}, carry=True)
    assert again.kept == (("no-moon",),)
    back = built(again.spec, tmp_path / "back", again.passes)
    assert back.path(UNET).read_bytes() == artifact.path(UNET).read_bytes()


def test_a_recorded_change_does_not_go_onto_another_architecture(
    tiny_checkpoint: Path, tiny_checkpoint_sdxl: Path, tmp_path: Path
) -> None:
    artifact = built(spec_for(tiny_checkpoint, esd("moon")), tmp_path / "out")
    revision = moved(artifact, {"path": str(tiny_checkpoint_sdxl)}, carry=True)
    with pytest.raises(SpecErrors, match="its recorded change moves"):
        built(revision.spec, tmp_path / "moved", revision.passes)
