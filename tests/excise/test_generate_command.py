from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from excise.cli import run

FAST = ["--steps", "1", "--guidance", "1"]


def test_a_prompt_becomes_a_png_file(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "star.png"
    assert run(["generate", str(tiny_checkpoint), "a star", "-o", str(out), *FAST]) == 0
    assert Image.open(out).size == (64, 64)
    assert capsys.readouterr().out.strip() == str(out)


def test_several_pictures_are_named_by_their_seeds_and_do_not_depend_on_their_number(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(tiny_checkpoint), "a star", *FAST]
    assert run([*command, "--seed", "7", "--count", "3", "-o", str(tmp_path / "cat"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["images"]
    assert [(one["seed"], one["file"]) for one in written] == [
        (seed, str(tmp_path / f"cat-{seed}.png")) for seed in (7, 8, 9)
    ]
    assert run([*command, "--seed", "8", "-o", str(tmp_path / "alone.png")]) == 0
    alone, among = (np.asarray(Image.open(tmp_path / name)) for name in ("alone.png", "cat-8.png"))
    assert np.array_equal(alone, among)


def test_files_that_exist_stay_unless_forced(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "star.png"
    out.write_text("precious")
    command = ["generate", str(tiny_checkpoint), "a star", "-o", str(out), *FAST]
    assert run(command) == 2
    assert out.read_text() == "precious"
    assert "exists" in capsys.readouterr().err
    assert run([*command, "--force"]) == 0
    assert Image.open(out).format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a star", "-o", "nowhere/star.png"], "is not a folder"),
        ([" ".join(["star"] * 20)], "this model reads 16"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["generate", str(tiny_checkpoint), *arguments, *FAST]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_a_folder_without_a_checkpoint_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", str(tmp_path), "a star"]) == 2
    assert "model_index.json" in capsys.readouterr().err
