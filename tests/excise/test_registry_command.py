"""From spec to released build and back, on the command line, with real compiles of a tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.artifact import LOCK, Artifact
from excise.cli import run
from registry.manifest import check_manifest

Excise = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def excise(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Excise:
    """Run a command with --json in this process: exit code, result, stderr."""
    monkeypatch.setenv("EXCISE_REGISTRY", str(tmp_path / "registry"))

    def call(*args: object) -> tuple[int, Any, str]:
        code = run([*(str(arg) for arg in args), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return call


def write_spec(path: Path, base: Path, words: tuple[str, ...]) -> Path:
    edits = [
        {"id": f"no-{word}", "edit": "erase", "concept": word, "method": "closed-form", "anchor": "shape"}
        for word in words
    ]
    drift = {"gate": "drift", "prompts": ["a moon"], "max_drift": 0.9, "steps": 2, "trials": 2}
    document = {"editspec": 1, "name": "tiny", "base": {"path": str(base)}, "edits": edits, "gates": [drift]}
    path.write_text(json.dumps(document), "utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    artifact = Artifact.open(folder)
    return {name: artifact.path(name).read_bytes() for name in artifact.files()}


def test_compile_add_release_undo_rebase_pull(
    excise: Excise, tiny_checkpoint: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    built, left, moved = tmp_path / "built", tmp_path / "left", tmp_path / "moved"
    assert (
        excise("compile", write_spec(tmp_path / "s.json", tiny_checkpoint, ("star", "heart")), "-o", built)[0]
        == 0
    )
    base = excise("registry", "add", tiny_checkpoint, "--name", "base")[1]["build"]
    one = excise("registry", "add", built, "--by", "ann")[1]["build"]
    assert excise("registry", "add", built)[1]["new"] is False
    code, step, _ = excise("registry", "promote", one[:10], "released", "--by", "bob")
    assert (code, step["state"], step["number"]) == (0, "released", 2)

    code, facts, _ = excise("undo", built, "no-star", "-o", left, "--base", tiny_checkpoint)
    assert (code, [run["edits"] for run in facts["passes"]]) == (0, [["no-heart"]])
    assert check_manifest(left) == ()
    assert Artifact(left).read(LOCK)["derived"] == {
        "relation": "undo",
        "edit": "no-star",
        "build": one,
        "kept": [],
        "solved": [["no-heart"]],
    }
    never = tmp_path / "never"
    excise("compile", write_spec(tmp_path / "n.json", tiny_checkpoint, ("heart",)), "-o", never)
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert Artifact(left).path(unet).read_bytes() == Artifact(never).path(unet).read_bytes()

    newer = copy_of(tiny_checkpoint)
    config = json.loads((newer / "scheduler/scheduler_config.json").read_text("utf-8"))
    (newer / "scheduler/scheduler_config.json").write_text(
        json.dumps({**config, "beta_end": 0.0125}), "utf-8"
    )
    assert excise("rebase", left, "--base", newer, "-o", moved)[0] == 0
    assert Artifact(moved).read(LOCK)["derived"]["relation"] == "rebase"
    assert b"0.0125" in Artifact(moved).path("scheduler/scheduler_config.json").read_bytes()

    two, three = (excise("registry", "add", folder)[1]["build"] for folder in (left, moved))
    family = excise("registry", "lineage", two)[1]
    assert {(row["relation"], row["build"]) for row in family["parents"]} == {("base", base), ("undo", one)}
    assert [(row["relation"], row["build"]) for row in family["children"]] == [("rebase", three)]
    listed = excise("registry", "list")[1]
    assert [(row["build"], row["state"]) for row in listed] == [
        (base, "candidate"),
        (one, "released"),
        (two, "candidate"),
        (three, "candidate"),
    ]
    shown = excise("registry", "show", "tiny")[1]
    assert shown["build"] == one
    assert [event["by"] for event in shown["history"]] == ["ann", "bob"]

    assert excise("registry", "pull", "tiny", "-o", tmp_path / "pulled")[0] == 0
    assert contents(tmp_path / "pulled") == contents(built)
    assert excise("registry", "verify", "--deep")[1] == {"ok": True, "builds": 4, "problems": []}
    assert excise("registry", "promote", one, "withdrawn")[0] == 2
    assert excise("registry", "promote", one, "withdrawn", "--reason", "a gate was wrong")[0] == 0
    code, error, _ = excise("registry", "pull", one, "-o", tmp_path / "again")
    assert code == 3
    assert "a gate was wrong" in error["error"]["message"]
    assert excise("registry", "gc", "--withdrawn")[1]["dropped"] == [one]
    exported = excise("registry", "export", tmp_path / "exported", two)[1]
    assert (exported["builds"], exported["new"]) == (1, 1)
    assert excise("registry", "verify", "--registry", tmp_path / "exported")[0] == 0


def test_undo_and_rebase_refuse_the_wrong_base(excise: Excise, tiny_checkpoint: Path, tmp_path: Path) -> None:
    built = tmp_path / "built"
    excise("compile", write_spec(tmp_path / "s.json", tiny_checkpoint, ("star", "heart")), "-o", built)
    code, error, _ = excise("undo", built, "no-star", "-o", tmp_path / "x", "--base", built)
    assert code == 2
    assert "is not the base that this artifact was made from" in error["error"]["message"]
    code, error, _ = excise("rebase", built, "--base", tiny_checkpoint, "-o", tmp_path / "x")
    assert code == 2
    assert "is the base that this build was made from" in error["error"]["message"]
    assert not (tmp_path / "x").exists()


def test_damage_exits_with_3_and_no_registry_with_2(
    excise: Excise, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert excise("registry", "list")[0] == 2
    assert excise("registry", "add", tiny_checkpoint, "--name", "base")[0] == 0
    blob = max((tmp_path / "registry" / "store" / "blobs").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[5] ^= 1
    blob.write_bytes(data)
    code, result, _ = excise("registry", "verify")
    assert (code, result["ok"]) == (3, False)
    assert excise("registry", "promote", "base", "released")[0] == 3


def test_people_read_lines(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--registry", str(tmp_path / "registry")]

    def said(*args: str) -> str:
        assert run(["registry", *args, *where]) == 0
        return capsys.readouterr().out

    build = said("add", str(tiny_checkpoint), "--name", "base").split()[1].rstrip(",")
    assert said("list").split()[:2] == [build, "candidate"]
    assert said("show", "base").startswith("     build  " + build)
    assert said("lineage", "base").split() == [build, "candidate", "base"]
    assert said("promote", "base", "released") == f"{build} is released\n"
    assert said("verify") == "1 build is intact\n"
    assert said("gc").startswith("0 blobs")
    assert said("pull", "base", "-o", str(tmp_path / "out")) == f"{tmp_path / 'out'}\n"
