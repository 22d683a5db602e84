from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler import artifact as layout
from compiler.artifact import Artifact
from excise.cli import run
from registry.manifest import check_manifest

Output = tuple[int, str, str]


@pytest.fixture
def excise(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    """Run the command line in this process: exit code, stdout, stderr."""

    def call(*args: object) -> Output:
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def spec(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return write_spec(tmp_path / "spec.json", tiny_checkpoint)


def write_spec(path: Path, base: Path, max_drift: float = 0.9, **more: Any) -> Path:
    """One edit of each engine, and a gate that needs no classifier."""
    short = {"steps": 2, "trajectories": 1, "sampling_steps": 2, "keep_weight": 0}
    edits = [
        {"id": "no-flame", "edit": "erase", "concept": "flame", "kind": "content", "method": "esd", **short},
        {"id": "no-star", "edit": "erase", "concept": "star", "method": "closed-form", "anchor": "shape"},
    ]
    drift = {"gate": "drift", "prompts": ["a moon"], "max_drift": max_drift, "steps": 2, "trials": 2}
    document = {"editspec": 1, "name": "tiny", "base": {"path": str(base)}, "edits": edits, "gates": [drift]}
    path.write_text(json.dumps({**document, **more}), "utf-8")
    return path


def test_a_spec_with_both_engines_becomes_a_whole_proven_artifact(
    excise: Callable[..., Output], spec: Path, tmp_path: Path
) -> None:
    code, out, err = excise("compile", spec, "-o", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert "drift" in err
    assert "erase/esd" in err
    artifact = Artifact.open(tmp_path / "out")
    kept = {layout.SPEC, layout.LOCK, layout.PLAN, layout.EDITS, layout.GATES, layout.DELTAS, layout.GRID}
    assert kept | {layout.MANIFEST, layout.CARD, "model_index.json"} <= set(artifact.files())
    assert check_manifest(artifact.folder) == ()
    passes = [run["pass"] for run in artifact.read(layout.EDITS)["passes"]]
    assert passes == ["erase/esd", "erase/closed-form"]

    again, out, _ = excise("compile", spec, "-o", tmp_path / "twin", "--json")
    facts = json.loads(out)
    assert again == 0
    assert facts["ok"] is True
    assert facts["artifact"] == str(tmp_path / "twin")
    assert [gate["id"] for gate in facts["gates"]] == ["drift"]
    twin = Artifact.open(tmp_path / "twin")
    assert {name: twin.sha256(name) for name in twin.files()} == {
        name: artifact.sha256(name) for name in artifact.files()
    }


def test_baked_guidance_is_summed_up_beside_its_original(
    excise: Callable[..., Output], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    edit = {
        "id": "calm", "edit": "guide", "away_from": ["crack"], "warmup": 0, "prompts": ["a house"],
        "steps": 2, "trajectories": 2, "timesteps": 2, "sampling_steps": 2, "guidance_scale": 5,
    }  # fmt: skip
    spec = write_spec(tmp_path / "spec.json", tiny_checkpoint, edits=[edit], gates=[])
    code, _, err = excise("compile", spec, "-o", tmp_path / "out")
    (run,) = Artifact.open(tmp_path / "out").read(layout.EDITS)["passes"]
    recorded = run["record"]["faithfulness"]
    assert code == 0
    assert [one["guidance_scale"] for one in recorded] == [5.0, 3.3333, 2.0]
    assert (
        f"calm: of what its original changes at runtime it misses {100 * recorded[0]['missed']:.0f} %" in err
    )

    _, out, _ = excise("compile", spec, "-o", tmp_path / "twin", "--json")
    assert json.loads(out)["faithfulness"] == {"calm": recorded}


def test_a_failed_gate_exits_with_3_and_keeps_the_artifact_aside(
    excise: Callable[..., Output], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "spec.json", tiny_checkpoint, max_drift=1e-9)
    code, out, err = excise("compile", spec, "-o", tmp_path / "out")
    assert (code, out) == (3, "")
    assert "refused: drift:" in err
    assert not (tmp_path / "out").exists()
    assert "**Rejected.**" in (tmp_path / "rejected" / "out" / "README.md").read_text("utf-8")


def test_what_is_there_is_refused_before_any_work(
    excise: Callable[..., Output], spec: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    code, out, err = excise("compile", spec, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert "--force" in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("command", [("plan",), ("compile", "-o", "out")])
def test_an_edit_that_cannot_be_compiled_is_refused_by_name_line_and_column(
    command: tuple[str, ...], excise: Callable[..., Output], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    calm = {"id": "calm", "edit": "shift", "direction": {"file": "calm.safetensors"}}
    spec = write_spec(tmp_path / "spec.json", tiny_checkpoint, edits=[calm])
    code, _, err = excise(command[0], spec, *command[1:])
    assert code == 2
    assert "spec.json:1:" in err
    assert "there is no file 'calm.safetensors' beside the spec" in err
    assert "at: /edits/0/direction" in err


def test_a_prompt_over_the_window_is_refused_while_planning(
    excise: Callable[..., Output], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spec = write_spec(
        tmp_path / "spec.json", tiny_checkpoint, preserve={"concepts": ["red green " * 9 + "x"]}
    )
    code, _, err = excise("plan", spec)
    assert code == 2
    assert "the base reads 16" in err


def test_the_plan_for_people_names_passes_gates_and_costs(excise: Callable[..., Output], spec: Path) -> None:
    code, out, _ = excise("plan", spec)
    assert code == 0
    for word in ("tiny", "sd1", "erase/esd", "no-flame", "erase/closed-form", "drift", "evals to do"):
        assert word in out


def test_the_plan_as_json_says_what_the_cache_holds(
    excise: Callable[..., Output], spec: Path, tmp_path: Path
) -> None:
    code, out, _ = excise("plan", spec, "--json", "--cache", tmp_path / "cache", "--device", "cpu")
    assert code == 0
    plan = json.loads(out)
    assert [planned["cached"] for planned in plan["passes"]] == [False, False]
    assert plan["passes"][0]["evals"] > 0
    assert plan["passes"][0]["seconds"] > 0
    assert plan["machine"]["kind"] == "cpu"


def test_the_plan_says_where_neighbours_are_not_mined_yet_and_mines_them_when_asked(
    excise: Callable[..., Output], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path / "spec.json", tiny_checkpoint, preserve={"auto": 2})
    _, out, _ = excise("plan", spec)
    assert "no-star: mined when compiled" in out
    assert "no-flame: none" in out
    _, out, _ = excise("plan", spec, "--neighbours", "--json")
    neighbours = {id: rows for one in json.loads(out)["passes"] for id, rows in one["neighbours"].items()}
    assert neighbours["no-flame"] == []
    words = [word for word, _ in neighbours["no-star"]]
    assert len(words) == 2
    _, out, _ = excise("plan", spec)
    assert all(word in out for word in words)


def test_an_unknown_device_is_bad_input(excise: Callable[..., Output], spec: Path) -> None:
    code, _, err = excise("plan", spec, "--device", "abacus")
    assert code == 2
    assert "no device 'abacus'" in err


def test_the_demo_compiles_its_spec_and_shows_what_it_found(
    excise: Callable[..., Output], spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("excise.embedded.DEMO", spec)
    code, out, err = excise("demo", "-o", tmp_path / "demo")
    assert (code, out) == (0, f"{tmp_path / 'demo'}\n")
    assert "before and after:" in err
    assert str(tmp_path / "demo" / layout.GRID) in err


def test_a_demo_that_fails_its_gates_still_shows_what_it_found(
    excise: Callable[..., Output], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_spec(tmp_path / "spec.json", tiny_checkpoint, max_drift=1e-9)
    monkeypatch.setattr("excise.embedded.DEMO", spec)
    code, _, err = excise("demo", "-o", tmp_path / "demo")
    assert code == 3
    assert "failed" in err
    assert str(tmp_path / "rejected" / "demo" / layout.GRID) in err
