from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from compiler import deltas
from compiler.artifact import DELTAS
from compiler.checkpoint import Checkpoint
from compiler.link import link
from excise.cli import run

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def edited(tiny_checkpoint: Path, tmp_path: Path) -> str:
    change = torch.outer(torch.linspace(-0.1, 0.1, 32), torch.linspace(0.1, 0.2, 32))
    out = tmp_path / "edited"
    link(Checkpoint.open(tiny_checkpoint), {KEY: change}, out)
    (out / "provenance").mkdir()
    deltas.save({KEY: change}, out / DELTAS)
    return str(out)


def test_every_form_is_a_command_and_its_record_is_json(
    edited: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {
        "lora": [str(tmp_path / "lora.safetensors")],
        "delta": [str(tmp_path / "delta.safetensors"), "--base", str(tiny_checkpoint)],
        "single-file": [str(tmp_path / "single.safetensors")],
        "fp16": [str(tmp_path / "half")],
    }
    records = {}
    for name, rest in commands.items():
        assert run(["export", name, edited, *rest, "--json"]) == 0
        records[name] = json.loads(capsys.readouterr().out)
        assert records[name]["ok"]
        assert records[name]["format"] == name
    assert records["lora"]["rank"] == 1
    assert records["lora"]["exact"]
    assert records["delta"]["reproduces"]["exact"]
    assert records["single-file"]["round_trip"]["identical"]
    assert (tmp_path / "half" / "model_index.json").is_file()


def test_people_get_lines(edited: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "lora", edited, str(tmp_path / "lora.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "rank 1, relative error" in shown
    assert "1 of 1 modules exact" in shown


def test_what_cannot_be_exported_is_bad_input(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "lora", str(tiny_checkpoint), str(tmp_path / "lora.safetensors")]) == 2
    assert "--base" in capsys.readouterr().err
    assert run(["export", "fp16", str(tiny_checkpoint), str(tiny_checkpoint / "half")]) == 2
    assert "the base checkpoint lies there" in capsys.readouterr().err
    assert run(["export", "onnx", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_artifact_that_is_not_what_it_recorded_exits_with_3(
    edited: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deltas.save({KEY: torch.zeros(32, 32)}, tmp_path / "edited" / DELTAS)
    out = str(tmp_path / "delta.safetensors")
    assert run(["export", "delta", edited, out, "--base", str(tiny_checkpoint)]) == 3
    assert "are not base + recorded change" in capsys.readouterr().err


def test_without_onnx_packages_the_remedy_is_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
    )
    assert run(["export", "onnx", str(tiny_checkpoint), str(tmp_path / "out")]) == 2
    assert "pip install 'excise[onnx]'" in capsys.readouterr().err
