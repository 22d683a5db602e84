from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compiler.artifact import GATES, LOCK, SPEC, Artifact
from compiler.checkpoint import Checkpoint
from compiler.gates import run_gates
from editspec import load_spec
from excise.cli import run

Copy = Callable[[Path], Path]
Build = Callable[..., Path]

SHORT = {"steps": 1, "guidance_scale": 1.0, "prompts": ["a {}"]}
KEPT = {"gate": "preserved", "concepts": ["moon"], "max_loss": 0.2, **SHORT}
ERASED = {"gate": "erased", "concept": "star", "max_rate": 0.2, **SHORT}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that sees a star and a moon in every picture."""
    import torch
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("models") / "judge"
    labels = {0: "a:star", 1: "a:none", 2: "b:moon", 3: "b:none"}
    ids = {label: number for number, label in labels.items()}
    model = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label=labels, label2id=ids
        )
    )
    with torch.no_grad():
        model.classifier[1].weight.zero_()
        model.classifier[1].bias.copy_(torch.tensor([9.0, 0.0, 9.0, 0.0]))
    model.save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=1.0).save_pretrained(folder)
    return folder


@pytest.fixture
def artifact_with(tiny_checkpoint: Path, judge: Path, copy_of: Copy, tmp_path: Path) -> Build:
    """Builds an artifact that changed nothing, with these gates in its spec and their results recorded."""

    def build(*gates: dict[str, Any]) -> Path:
        document = {
            "editspec": 1,
            "name": "proof",
            "base": {"path": str(tiny_checkpoint)},
            "edits": [
                {"id": "e", "edit": "erase", "concept": "star", "method": "closed-form", "anchor": "shape"}
            ],
            "gates": list(gates),
            "evaluators": [{"id": "judge", "model": str(judge)}],
        }
        built = Artifact(copy_of(tiny_checkpoint))
        built.write(SPEC, document)
        base = Checkpoint.open(tiny_checkpoint)
        built.write(LOCK, {"base": {"digest": base.digest}})
        if gates:
            built.write(GATES, run_gates(load_spec(built.path(SPEC)), base, built).as_dict())
        return built.folder

    return build


def test_gates_that_hold_exit_with_0_and_repeat_what_was_recorded(
    artifact_with: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact_with(KEPT)
    assert run(["evaluate", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["repeats_record"] is True


def test_a_failed_gate_exits_with_3_and_prints_one_object(
    artifact_with: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact_with(KEPT, ERASED)
    assert run(["evaluate", str(folder), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert [gate["passed"] for gate in report["gates"]] == [True, False]


def test_people_get_a_table_with_verdicts_and_reasons(
    artifact_with: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = artifact_with(KEPT, ERASED)
    before = sorted(folder.rglob("*"))
    grid = tmp_path / "look.png"
    assert run(["evaluate", str(folder), "--grid", str(grid)]) == 3
    out, err = capsys.readouterr()
    assert "passed" in out
    assert "failed" in out
    assert "star seen in" in out
    assert "refused: erased-star" in err
    assert Image.open(grid).format == "PNG"
    assert sorted(folder.rglob("*")) == before


def test_another_spec_may_bring_other_gates(
    artifact_with: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact_with(KEPT)
    document = json.loads((folder / SPEC).read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document | {"gates": [ERASED]}))
    assert run(["evaluate", str(folder), "--spec", str(other), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert [gate["gate"] for gate in report["gates"]] == ["erased"]
    assert report["repeats_record"] is None


def test_another_base_than_the_artifacts_own_is_refused(
    artifact_with: Build, tiny_checkpoint_fp16: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact_with(KEPT)
    assert run(["evaluate", str(folder), "--base", str(tiny_checkpoint_fp16)]) == 2
    assert "is not the base that this artifact was made from" in capsys.readouterr().err


def test_an_artifact_without_gates_has_nothing_to_evaluate(
    artifact_with: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(artifact_with())]) == 2
    assert "the spec has no gates" in capsys.readouterr().err


def test_a_folder_that_is_no_artifact_is_bad_input(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(tiny_checkpoint)]) == 2
    assert "not an artifact of Excise" in capsys.readouterr().err
