from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.passes import PassContext
from compiler.passes.shift import ShiftDirections
from compiler.plan import make_plan
from compiler.progress import Silent
from compiler.published_directions import read_published, without_common
from compiler.seeds import gaussian
from editspec import EditSpec, parse_spec
from editspec.errors import InputError, SpecErrors

CHANNELS, SIDE = 64, 4  # the tiny checkpoint's mid block
NAMES = {"female": 0, "male": 1, "antisexual": 2}


def _write(folder: Path, content: Any, names: Any = NAMES) -> Path:
    path = folder / "unet.pth"
    torch.save(content, path)
    (folder / "concept_dict.json").write_text(json.dumps(names))
    return path


def _vectors(count: int = 3) -> torch.Tensor:
    return gaussian((CHANNELS * SIDE * SIDE, count), 5, "published")


def test_a_vector_is_projected_to_channels_and_loses_what_all_have_in_common(tmp_path: Path) -> None:
    drift = gaussian((CHANNELS,), 1, "drift")[:, None, None].expand(CHANNELS, SIDE, SIDE).reshape(-1, 1)
    own = torch.zeros(CHANNELS, SIDE, SIDE)
    own[3] = 2.0
    own[4, 0, 0] = 4.0  # a place alone: mostly lost
    spread = torch.stack([own.reshape(-1), -own.reshape(-1), torch.zeros(CHANNELS * SIDE**2)], dim=1)
    path = _write(tmp_path, {"mlp.fc1.weight": 5 * drift + spread})
    found = read_published(path, "female", CHANNELS, SIDE)
    assert found.spatial.shape == (CHANNELS, SIDE, SIDE)
    unit = drift.reshape(CHANNELS, -1)[:, 0] / drift.reshape(CHANNELS, -1)[:, 0].norm()
    expected = own.mean(dim=(1, 2)) - (own.mean(dim=(1, 2)) @ unit) * unit
    assert torch.allclose(found.channels, expected, atol=1e-4)
    assert 0 < found.energy_kept < found.energy_of_mean < 1


def test_energy_is_whole_for_a_constant_vector_and_a_share_for_noise(tmp_path: Path) -> None:
    constant = gaussian((CHANNELS, 1, 1), 1, "c").expand(CHANNELS, SIDE, SIDE).reshape(-1, 1)
    path = _write(tmp_path, constant.contiguous(), {"one": 0})
    found = read_published(path, None, CHANNELS, SIDE)
    assert found.energy_of_mean == pytest.approx(1.0)
    assert found.energy_kept == pytest.approx(1.0)  # a single vector has nothing in common with others
    noise = read_published(_write(tmp_path, _vectors()), "male", CHANNELS, SIDE)
    assert noise.energy_of_mean == pytest.approx(1 / SIDE**2, rel=0.5)


def test_the_common_direction_is_gone() -> None:
    vectors = gaussian((5, 16), 2, "v") + 3
    left = without_common(vectors)
    assert torch.allclose(left.mean(0), torch.zeros(16), atol=1e-5)
    assert torch.equal(without_common(vectors[:1]), vectors[:1])


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "other architecture": (torch.ones(1280 * 64, 3), NAMES, "have 1024 rows"),
    "turned": (_vectors().T.contiguous(), NAMES, "rows and columns exchanged"),
    "several tensors": ({"a": _vectors(), "b": _vectors()}, NAMES, "a dictionary of 2 entries"),
    "no matrix": (torch.ones(7), NAMES, "a tensor of 7 numbers"),
    "whole numbers": (torch.ones(1024, 3, dtype=torch.int64), NAMES, "a tensor of 3072 numbers"),
    "not finite": (_vectors() * float("nan"), NAMES, "not finite"),
    "zero": (torch.zeros(1024, 3), NAMES, "the vector of 'male' is zero"),
    "names too few": (_vectors(), {"male": 0}, "holds 3 vectors, its concept dictionary names 1"),
    "columns twice": (_vectors(), {"male": 0, "female": 0}, "no concept dictionary"),
    "columns no numbers": (_vectors(), {"male": "first"}, "no concept dictionary"),
    "unknown concept": (_vectors(), {"a": 0, "b": 1, "c": 2}, "no concept 'male'"),
}


@pytest.mark.parametrize(("content", "names", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_it_is_refused(tmp_path: Path, content: Any, names: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_published(_write(tmp_path, content, names), "male", CHANNELS, SIDE)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap-was-sprung"),))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = _write(tmp_path, torch.ones(2))
    path.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(InputError, match="holds no plain tensors"):
        read_published(path, "male", CHANNELS, SIDE)
    torch.save({"weight": _Trap()}, path)
    with pytest.raises(InputError, match="holds no plain tensors"):
        read_published(path, "male", CHANNELS, SIDE)
    assert not (tmp_path / "trap-was-sprung").exists()


def _spec(folder: Path, **changed: Any) -> EditSpec:
    edit = {
        "edit": "shift",
        "direction": {"file": "unet.pth", "concept": "male"},
        "prompts": ["a house", "a photo of a baker"],
        "sampling_steps": 3,
        **changed,
    }
    document = {"editspec": 1, "name": "n", "base": {"path": "tiny"}, "edits": [edit]}
    return parse_spec(json.dumps(document), str(folder / "spec.json"))


def test_an_imported_vector_is_folded_at_the_size_that_does_what_its_hook_did(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    constant = gaussian((CHANNELS, 3), 4, "c").repeat_interleave(SIDE**2, 0)
    _write(tmp_path, constant - constant.mean(1, keepdim=True))
    spec = _spec(tmp_path)
    plan = make_plan(spec, base, StageCache(), choose("cpu"))
    context = PassContext(spec, base, {}, 0, torch.device("cpu"), StageCache(), Silent())
    result = ShiftDirections().run(spec.edits, context)
    assert set(result.deltas) == {"mid_block.resnets.1.conv2.bias"} <= set(plan.passes[0].targets)
    (record,) = result.record["directions"]
    assert record["energy_of_mean"] == pytest.approx(1.0, abs=1e-3)
    assert record["rescaled_by"] > 1  # in the text half alone it was guided up w times
    assert record["error_left"] < 1
    assert result.record["evals"] <= plan.passes[0].evals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": []}, "rescaled on prompts"),
        ({"direction": {"file": "unet.pth"}}, "say which 'concept' of this file"),
        ({"direction": {"file": "none.pth", "concept": "male"}}, "there is no file 'none.pth'"),
    ],
)
def test_plans_refuse_an_import_that_lacks_something(
    tiny_checkpoint: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    _write(tmp_path, _vectors())
    with pytest.raises(SpecErrors, match=message):
        make_plan(_spec(tmp_path, **changed), Checkpoint.open(tiny_checkpoint), StageCache(), choose("cpu"))
