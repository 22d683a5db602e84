from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compiler import deltas
from compiler.artifact import DELTAS
from compiler.checkpoint import Checkpoint
from compiler.link import link
from editspec import GateFailed, InputError
from exporters.changes import changes_of
from exporters.delta_file import export_delta

Copy = Callable[[Path], Path]
Make = Callable[..., Path]


def test_an_artifacts_own_record_is_written_byte_for_byte(
    tiny_checkpoint: Path, edit: Make, tensors: dict[str, str], tmp_path: Path
) -> None:
    folder = edit(tiny_checkpoint, "low rank", "norm")
    facts = export_delta(Checkpoint.open(folder), tmp_path / "edit.safetensors")
    assert (tmp_path / "edit.safetensors").read_bytes() == (folder / DELTAS).read_bytes()
    assert (facts["origin"], facts["tensors"], facts["reproduces"]) == ("provenance", 2, None)
    assert facts["source"]["digest"] == Checkpoint.open(folder).digest


@pytest.mark.parametrize("fixture", ["tiny_checkpoint", "tiny_checkpoint_fp16"])
def test_base_and_file_link_to_the_edited_checkpoint(
    fixture: str, request: pytest.FixtureRequest, edit: Make, tmp_path: Path
) -> None:
    base = Checkpoint.open(request.getfixturevalue(fixture))
    edited = Checkpoint.open(edit(base.root, "low rank", "kernel", "bias"))
    facts = export_delta(edited, tmp_path / "edit.safetensors", base=base)
    assert facts["reproduces"]["exact"]
    assert facts["base"] == {"digest": base.digest}
    link(base, deltas.load(tmp_path / "edit.safetensors"), tmp_path / "again")
    assert Checkpoint.open(tmp_path / "again").digest == edited.digest


def test_without_a_record_the_difference_to_the_base_is_taken(
    tiny_checkpoint_fp16: Path, edit: Make, tensors: dict[str, str], tmp_path: Path
) -> None:
    base = Checkpoint.open(tiny_checkpoint_fp16)
    edited = Checkpoint.open(edit(base.root, "low rank", "bias", recorded=False))
    facts = export_delta(edited, tmp_path / "edit.safetensors", base=base)
    assert facts["origin"] == "difference"
    found = deltas.load(tmp_path / "edit.safetensors")
    assert set(found) == {tensors["low rank"], tensors["bias"]}
    assert facts["reproduces"]["exact"]


def test_an_artifacts_lock_says_which_base_the_changes_are_for(tiny_checkpoint: Path, edit: Make) -> None:
    folder = edit(tiny_checkpoint, "bias")
    assert changes_of(Checkpoint.open(folder), None).base_record() is None
    lock = {"lock": 1, "base": {"repo": "org/name", "revision": "0" * 40, "digest": "ab", "files": {}}}
    (folder / "provenance" / "lock.json").write_text(json.dumps(lock))
    assert changes_of(Checkpoint.open(folder), None).base_record() == {
        "digest": "ab",
        "repo": "org/name",
        "revision": "0" * 40,
    }


def test_neither_record_nor_base_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its changes are unknown"):
        export_delta(Checkpoint.open(tiny_checkpoint), tmp_path / "edit.safetensors")


def test_an_artifact_that_is_not_what_it_recorded_is_refused(
    tiny_checkpoint: Path, edit: Make, tensors: dict[str, str], tmp_path: Path
) -> None:
    folder = edit(tiny_checkpoint, "low rank")
    recorded = deltas.load(folder / DELTAS)
    recorded[tensors["low rank"]][0, 0] += 0.5
    deltas.save(recorded, folder / DELTAS)
    with pytest.raises(GateFailed, match="1 elements"):
        export_delta(
            Checkpoint.open(folder), tmp_path / "edit.safetensors", base=Checkpoint.open(tiny_checkpoint)
        )
    assert not (tmp_path / "edit.safetensors").exists()


def test_a_record_of_another_model_is_refused(
    tiny_checkpoint: Path, edit: Make, tensors: dict[str, str]
) -> None:
    folder = edit(tiny_checkpoint, "low rank")
    deltas.save({tensors["low rank"]: torch.zeros(2, 2)}, folder / DELTAS)
    with pytest.raises(InputError, match="fits no U-Net weight"):
        changes_of(Checkpoint.open(folder), None)


def test_a_base_of_another_shape_or_with_another_text_encoder_is_refused(
    tiny_checkpoint: Path, tiny_checkpoint_sdxl: Path, copy_of: Copy, edit: Make
) -> None:
    edited = Checkpoint.open(edit(tiny_checkpoint, "low rank", recorded=False))
    with pytest.raises(InputError, match="another shape"):
        changes_of(edited, Checkpoint.open(tiny_checkpoint_sdxl))
    other = copy_of(tiny_checkpoint)
    path = other / "text_encoder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="in its text_encoder too"):
        changes_of(edited, Checkpoint.open(other))
