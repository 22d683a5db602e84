from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compiler.artifact import EDITS, REPORT, Artifact
from excise.cli import BAD_INPUT, DONE, run


def test_the_report_of_an_artifact_is_shown_without_measuring_again(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(tiny_artifact)]) == DONE
    shown = capsys.readouterr().out
    assert "drift" in shown
    assert "erase/closed-form" in shown
    assert f"report: {tiny_artifact / REPORT}" in shown


def test_a_page_is_written_whole_and_replaced_only_when_told(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert run(["report", str(tiny_artifact), "-o", str(out)]) == DONE
    assert capsys.readouterr().out.strip() == str(out)
    assert 'src="data:image/png;base64,' in out.read_text("utf-8")
    out.write_text("mine")
    assert run(["report", str(tiny_artifact), "-o", str(out)]) == BAD_INPUT
    assert out.read_text() == "mine"
    assert run(["report", str(tiny_artifact), "-o", str(out), "--force"]) == DONE
    assert [path.name for path in tmp_path.iterdir() if "page" in path.name] == ["page.html"]


def test_json_says_what_the_compile_said(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert run(["report", str(tiny_artifact), "-o", str(out), "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert told["report"] == str(tiny_artifact / REPORT)
    assert told["page"] == str(out)


def test_an_artifact_of_before_there_were_reports_gets_one(tiny_artifact: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_artifact, tmp_path / "old"))
    page = (old / REPORT).read_text("utf-8")
    (old / REPORT).unlink()
    assert run(["report", str(old), "-o", str(tmp_path / "page.html")]) == DONE
    body = page.partition("<body>")[2].partition("<img")[0]
    assert body in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize("out", ["missing/page.html", "."])
def test_a_place_that_takes_no_file_is_refused(
    out: str, tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(tiny_artifact), "-o", str(tmp_path / out)]) == BAD_INPUT
    assert "help:" in capsys.readouterr().err


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path)]) == BAD_INPUT
    assert "not an artifact of Excise" in capsys.readouterr().err


def test_records_of_another_kind_are_one_clear_error(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_artifact, tmp_path / "strange"))
    artifact = Artifact(folder)
    artifact.write(EDITS, {"passes": [{"pass": "erase/closed-form"}]})
    out = tmp_path / "page.html"
    assert run(["report", str(folder), "-o", str(out)]) == BAD_INPUT
    assert "its records lack what a build records" in capsys.readouterr().err
    assert not out.exists()
