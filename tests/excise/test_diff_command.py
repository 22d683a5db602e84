from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compiler.artifact import GATES, LOCK, Artifact
from excise.cli import BAD_INPUT, DONE, REFUSED, run


def test_an_artifact_beside_its_base_shows_where_it_was_edited(
    tiny_artifact: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diff", str(tiny_checkpoint), str(tiny_artifact)]) == DONE
    shown = capsys.readouterr().out
    rows = {line.split("  ")[0].strip(): line.split() for line in shown.splitlines() if line}
    assert rows["vae"][2:] == ["0", "0"]
    assert int(rows["unet"][2]) > 0
    assert "attentions" in shown
    assert "spec" not in shown  # the base has no records
    assert run(["diff", str(tiny_checkpoint), str(tiny_artifact), "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert told["equal"] is False
    assert all(".attn2.to_" in name for name in told["weights"]["unet"]["moved"])


def test_two_builds_of_one_spec_are_equal_and_a_pipeline_can_require_it(
    tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = str(shutil.copytree(tiny_artifact, tmp_path / "again"))
    assert run(["diff", str(tiny_artifact), again, "--require-equal"]) == DONE
    shown = capsys.readouterr().out
    assert all(f"{title}: the same" in shown for title in ("spec", "lock", "gates"))
    assert run(["diff", str(tiny_artifact), str(tiny_checkpoint), "--require-equal"]) == REFUSED
    assert "the weights are not equal" in capsys.readouterr().err
    assert run(["diff", str(tiny_artifact), str(tiny_checkpoint), "--require-equal", "--json"]) == REFUSED
    assert json.loads(capsys.readouterr().out)["equal"] is False


def test_records_are_compared_by_edit_and_by_gate(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Artifact.open(Path(shutil.copytree(tiny_artifact, tmp_path / "other")))
    gates, lock = other.read(GATES), other.read(LOCK)
    gates["gates"][0] |= {"passed": False, "observed": 0.95}
    lock["libraries"]["torch"] = "9.9.9"
    other.write(GATES, gates)
    other.write(LOCK, lock)
    assert run(["diff", str(tiny_artifact), str(other.folder)]) == DONE
    shown = capsys.readouterr().out
    assert "spec: the same" in shown
    assert '-> "9.9.9"' in shown
    assert "/libraries/torch: " in shown
    assert "-> failed with 95" in shown


@pytest.mark.parametrize(("name", "text"), [(LOCK, "{}"), (GATES, "[]"), (GATES, "no JSON")])
def test_records_that_are_none_are_bad_input(
    tiny_artifact: Path, tmp_path: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(tiny_artifact, tmp_path / "other"))
    (other / name).write_text(text, "utf-8")
    assert run(["diff", str(tiny_artifact), str(other)]) == BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_no_checkpoint_is_refused(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diff", str(tiny_artifact), str(tmp_path / "none")]) == BAD_INPUT
    assert "does not exist" in capsys.readouterr().err
