from __future__ import annotations

import json
from pathlib import Path

import pytest

from excise.cli import run

EDIT = {
    "id": "calm", "edit": "shift", "direction": {"prompt": "a house", "negative_prompt": "flame"},
    "sites": "mid", "steps": 1, "batch": 2, "trajectories": 2, "timesteps": 2, "sampling_steps": 2,
}  # fmt: skip


@pytest.fixture
def spec(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    document = {"editspec": 1, "name": "n", "base": {"path": str(tiny_checkpoint)}, "edits": [EDIT]}
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_direction_is_saved_once_and_says_what_it_is(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "directions"
    command = ["direction", "save", str(spec), "-o", str(folder), "--json"]
    assert run(command) == 0
    (written,) = json.loads(capsys.readouterr().out)["directions"]
    path = folder / "calm.safetensors"
    assert (written["file"], written["edit"]) == (str(path), "calm")
    before = path.read_bytes()
    assert run(command) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "exists"
    assert run([*command, "--force"]) == 0
    capsys.readouterr()
    assert path.read_bytes() == before
    assert run(["direction", "show", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["vectors"], shown["numbers"]) == (1, 64)
    assert shown["facts"]["negative_prompt"] == "flame"


def test_what_is_no_shift_edit_or_no_direction_is_refused(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["direction", "save", str(spec), "-o", str(tmp_path / "d"), "--edit", "other"]) == 2
    assert "has no shift edit 'other'" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert run(["direction", "show", str(spec)]) == 2
