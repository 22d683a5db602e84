from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compiler import artifact as layout
from compiler.artifact import Artifact
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.pipeline import StageFault, compile_spec, imported_beside
from compiler.safetensors_file import TensorEntry
from compiler.seeds import gaussian
from compiler.selections import select
from editspec import Edit, EditSpec, parse_spec
from editspec.errors import GateFailed, InputError


class Nudge(EditPass):
    """Moves keys and values by a tenth of seeded noise."""

    name, version, order, merges = "erase/esd", 1, 10, False
    runs = 0

    def accepts(self, edit: Edit) -> bool:
        return edit.edit == "erase"

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, "cross-attention-kv")

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        return PassCost(0, 0.1, 10**6)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        type(self).runs += 1
        names = self.targets(edits, context.checkpoint.weights("unet").entries)
        moved = {name: self.change(name, context.weight(name), context.seed) for name in names}
        return PassResult(moved, {"words": [edit.id for edit in edits]})

    def change(self, name: str, weight: torch.Tensor, seed: int) -> torch.Tensor:
        return 0.1 * weight * gaussian(tuple(weight.shape), seed, name)


@pytest.fixture(autouse=True)
def _no_runs_yet() -> None:
    Nudge.runs = 0


def spec_for(base: Path, *concepts: str, **more: Any) -> EditSpec:
    edits = [{"id": f"no-{name}", "edit": "erase", "concept": name} for name in concepts or ("star",)]
    document = {"editspec": 1, "name": "t", "base": {"path": str(base)}, "edits": edits, **more}
    return parse_spec(json.dumps(document))


def compiled(spec: EditSpec, out: Path, edit_pass: EditPass | None = None, **more: Any) -> Artifact:
    return compile_spec(spec, out, device=choose("cpu"), passes=(edit_pass or Nudge(),), **more)


def digests(artifact: Artifact) -> dict[str, str]:
    return {name: artifact.sha256(name) for name in artifact.files()}


def unet_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("fixture", ["tiny_checkpoint", "tiny_checkpoint_fp16", "tiny_checkpoint_sdxl"])
def test_the_output_holds_base_plus_delta_and_nothing_else_moved(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(fixture)
    artifact = compiled(spec_for(base, "star", "moon"), tmp_path / "out")
    before, after = unet_of(base), unet_of(artifact.folder)
    deltas = load_file(artifact.path(layout.DELTAS))
    assert list(after) == list(before)
    assert sorted(deltas) == sorted(name for name in before if ".attn2.to_k" in name or ".attn2.to_v" in name)
    for name, old in before.items():
        wanted = (old.float() + deltas[name]).to(old.dtype) if name in deltas else old
        assert after[name].dtype == old.dtype
        assert torch.equal(after[name], wanted)
    for name in artifact.files():
        if name.endswith(".safetensors") and not name.startswith(("unet/", "provenance/")):
            assert artifact.path(name).read_bytes() == (base / name).read_bytes()


def test_passes_run_on_the_result_of_those_before_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    class Doubling(Nudge):
        def change(self, name: str, weight: torch.Tensor, seed: int) -> torch.Tensor:
            return weight

    artifact = compiled(spec_for(tiny_checkpoint, "star", "moon"), tmp_path / "out", Doubling())
    before, after = unet_of(tiny_checkpoint), unet_of(artifact.folder)
    name = next(name for name in before if name.endswith("attn2.to_k.weight"))
    torch.testing.assert_close(after[name], 4 * before[name])


def test_two_folders_and_two_caches_get_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec = spec_for(tiny_checkpoint, "star", "moon")
    one = compiled(spec, tmp_path / "one", cache=StageCache(tmp_path / "cache-1"))
    two = compiled(spec, tmp_path / "elsewhere" / "two", cache=StageCache(tmp_path / "cache-2"))
    three = compiled(spec, tmp_path / "three", cache=StageCache(tmp_path / "cache-2"))
    assert Nudge.runs == 4
    assert digests(one) == digests(two) == digests(three)


def test_what_no_pass_may_change_is_copied_while_the_passes_run(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    weights = {name for name in Checkpoint.open(tiny_checkpoint).files() if name.endswith(".safetensors")}

    class Waiting(Nudge):
        def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
            building = tmp_path / ".out.building"
            deadline = time.monotonic() + 60
            sizes = {name: (tiny_checkpoint / name).stat().st_size for name in weights}
            while any((building / name).stat().st_size != size for name, size in sizes.items()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return super().run(edits, context)

    early = compiled(spec_for(tiny_checkpoint), tmp_path / "out", Waiting())
    plain = compiled(spec_for(tiny_checkpoint), tmp_path / "plain")
    assert digests(early) == digests(plain)


def test_what_cannot_be_imported_beside_is_left_to_those_who_need_it() -> None:
    done = []
    with imported_beside("no_such_module"):
        done.append("inside")
    with pytest.raises(InputError), imported_beside("json"):
        raise InputError("spec", "is refused")
    assert done == ["inside"]


def test_changing_the_last_edit_runs_that_edit_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    compiled(spec_for(tiny_checkpoint, "star", "moon"), tmp_path / "one")
    compiled(spec_for(tiny_checkpoint, "star", "tree"), tmp_path / "two")
    assert Nudge.runs == 3


def test_no_trace_of_this_machine_is_in_the_artifact(tiny_checkpoint: Path, tmp_path: Path) -> None:
    artifact = compiled(spec_for(tiny_checkpoint), tmp_path / "out")
    words = [str(tmp_path), str(tiny_checkpoint.parent), str(Path.home()) + "/"]
    for name in artifact.files():
        content = artifact.path(name).read_bytes()
        assert not [word for word in words if word.encode() in content], name
        assert artifact.path(name).stat().st_mode & 0o777 == 0o644, name
    assert artifact.read(layout.SPEC)["base"] == {"path": tiny_checkpoint.name}


def test_the_lock_pins_every_file_of_the_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lock = compiled(spec_for(tiny_checkpoint), tmp_path / "out").read(layout.LOCK)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    assert lock["base"]["files"] == checkpoint.digests()
    assert lock["base"]["digest"] == checkpoint.digest
    assert lock["libraries"]["torch"] == torch.__version__
    assert lock["seed"] == "0"


def test_the_record_tells_how_far_each_tensor_moved_and_what_rounding_took(
    tiny_checkpoint_fp16: Path, tmp_path: Path
) -> None:
    class Tiny(Nudge):
        def change(self, name: str, weight: torch.Tensor, seed: int) -> torch.Tensor:
            return torch.full_like(weight, 1e-9)

    record = compiled(spec_for(tiny_checkpoint_fp16), tmp_path / "out", Tiny()).read(layout.EDITS)
    (run,) = record["passes"]
    assert run["record"] == {"words": ["no-star"]}
    assert len(run["tensors"]) == run["targets"] == record["tensors"]["changed"]
    assert run["tensors"][0]["max_abs"] == 1e-9
    assert record["rounding"]["lost_fraction"] > 0.9


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda deltas: {**deltas, "conv_in.weight": torch.zeros(32, 4, 3, 3)}, "never declared"),
        (lambda deltas: {name: delta.T for name, delta in deltas.items()}, "in the base"),
        (lambda deltas: {name: delta * float("nan") for name, delta in deltas.items()}, "not finite"),
    ],
)
def test_a_pass_that_breaks_its_word_is_stopped_by_name_and_nothing_is_written(
    broken: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    says: str,
    tiny_checkpoint_sdxl: Path,
    tmp_path: Path,
) -> None:
    class Broken(Nudge):
        def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
            return PassResult(broken(dict(super().run(edits, context).deltas)))

    with pytest.raises(StageFault, match=f"after 'erase/esd: no-star'.*{says}"):
        compiled(spec_for(tiny_checkpoint_sdxl), tmp_path / "out", Broken())
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_changes_meanwhile_is_noticed(
    tiny_checkpoint: Path, tmp_path: Path, copy_of: Callable[[Path], Path]
) -> None:
    base = copy_of(tiny_checkpoint)

    class Meddling(Nudge):
        def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
            config = base / "scheduler" / "scheduler_config.json"
            config.write_text(config.read_text("utf-8") + " ", "utf-8")
            return super().run(edits, context)

    with pytest.raises(StageFault, match="changed while it was compiled"):
        compiled(spec_for(base), tmp_path / "out", Meddling())
    assert not (tmp_path / "out").exists()


def test_finish_callbacks_see_the_whole_folder_before_it_is_delivered(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    seen: list[tuple[bool, bool]] = []

    def finish(artifact: Artifact) -> None:
        seen.append((artifact.path(layout.GATES).is_file(), (tmp_path / "out").exists()))
        artifact.path("extra.txt").write_text("extra", "utf-8")

    artifact = compiled(spec_for(tiny_checkpoint), tmp_path / "out", finish=(finish,))
    assert seen == [(True, False)]
    assert artifact.path("extra.txt").is_file()


def test_a_failed_gate_keeps_the_artifact_aside_and_says_why(tiny_checkpoint: Path, tmp_path: Path) -> None:
    drift = {"gate": "drift", "prompts": ["a moon"], "max_drift": 1e-6, "steps": 2, "trials": 2}
    with pytest.raises(GateFailed, match=r"(?s)drift: .*kept in .*rejected"):
        compiled(spec_for(tiny_checkpoint, gates=[drift]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rejected = Artifact.open(tmp_path / "rejected" / "out")
    assert rejected.read(layout.GATES)["passed"] is False
    assert rejected.path(layout.GRID).is_file()


def test_the_result_loads_in_stock_diffusers_with_exactly_the_folded_tensors(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    artifact = compiled(spec_for(tiny_checkpoint), tmp_path / "out")
    pipeline = StableDiffusionPipeline.from_pretrained(artifact.folder, safety_checker=None)
    loaded = pipeline.unet.state_dict()
    for name, tensor in unet_of(artifact.folder).items():
        assert torch.equal(loaded[name], tensor)


def test_a_full_disk_of_the_cache_is_bad_input(
    tiny_checkpoint: Path, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the disk is full"):
        compiled(spec_for(tiny_checkpoint), tmp_path / "out", cache=StageCache(small_disk("8k")))
    assert list(tmp_path.iterdir()) == []
