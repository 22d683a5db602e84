from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from compiler import atomic


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "text").write_text(text, "utf-8")
    return path


def test_a_claim_gives_an_empty_folder_and_leaves_nothing(tmp_path: Path) -> None:
    folder_with(tmp_path / "x", "left over")
    with atomic.claim(tmp_path / "x") as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").write_text("new", "utf-8")
    assert list(tmp_path.iterdir()) == []


def test_a_second_claim_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with atomic.claim(tmp_path / "x"):
        with pytest.raises(atomic.Claimed), atomic.claim(tmp_path / "x", wait=False):
            pytest.fail("claimed twice")
        assert (tmp_path / "x").is_dir()
    with atomic.claim(tmp_path / "x", wait=False):
        pass


def test_sweeping_spares_what_is_being_built(tmp_path: Path) -> None:
    folder_with(tmp_path / "dead", "half")
    (tmp_path / "dead.lock").touch()
    with atomic.claim(tmp_path / "alive") as folder:
        atomic.sweep(tmp_path)
        assert folder.is_dir()
        assert not (tmp_path / "dead").exists()


def test_publishing_refuses_what_is_there(tmp_path: Path) -> None:
    new, old = folder_with(tmp_path / "new", "new"), folder_with(tmp_path / "old", "old")
    with pytest.raises(FileExistsError):
        atomic.publish(new, old)
    assert (old / "text").read_text("utf-8") == "old"


@pytest.mark.parametrize("swap", ["by the system", "by two renames"])
def test_publishing_with_replace_swaps_and_drops_the_old(
    tmp_path: Path, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if swap == "by two renames":
        monkeypatch.setattr("sys.platform", "other")
    new, old = folder_with(tmp_path / "new", "new"), folder_with(tmp_path / "old", "old")
    atomic.publish(new, old, replace=True)
    assert (old / "text").read_text("utf-8") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_leaving_waits_until_all_that_was_begun_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def slowly(path: Path) -> None:
        time.sleep(0.05)
        flushed.append(path.name)

    monkeypatch.setattr(atomic, "_sync", slowly)
    (tmp_path / "tree").mkdir()
    for name in ("tree/one", "tree/two", "alone"):
        (tmp_path / name).touch()
    with atomic.flushing() as flush:
        flush(tmp_path / "tree")
        flush(tmp_path / "alone")
    assert sorted(flushed) == ["alone", "one", "tree", "two"]


def test_what_the_disk_refuses_to_flush_is_raised_on_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(atomic, "_sync", refuse)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), atomic.flushing() as flush:
        flush(tmp_path / "file")
