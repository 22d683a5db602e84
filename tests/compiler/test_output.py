from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from compiler.artifact import SPEC, Artifact
from compiler.output import Output, storage_refusals
from editspec.errors import InputError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


def fill(folder: Path, text: str) -> None:
    artifact = Artifact(folder)
    folder.mkdir(parents=True, exist_ok=True)
    artifact.path("model_index.json").write_text(text, "utf-8")
    artifact.write(SPEC, {})


def build(out: Path, base: Path, text: str, *, force: bool = False) -> Artifact:
    output = Output.claimed(out, force=force, base=base, needed_bytes=0)
    with output.building() as built:
        fill(built.folder, text)
        return output.deliver(built)


def break_off(output: Output) -> None:
    with output.building() as built:
        fill(built.folder, "half")
        raise RuntimeError("broken")


def text_at(folder: Path) -> str:
    return (folder / "model_index.json").read_text("utf-8")


def test_a_delivered_folder_is_at_its_place_and_nothing_else_is_left(tmp_path: Path, base: Path) -> None:
    artifact = build(tmp_path / "deep" / "er" / "out", base, "new")
    assert artifact.folder == tmp_path / "deep" / "er" / "out"
    assert text_at(artifact.folder) == "new"
    assert [path.name for path in artifact.folder.parent.iterdir()] == ["out"]
    assert artifact.folder.stat().st_mode & 0o777 == 0o755


def test_a_failing_build_leaves_no_trace_not_even_parent_folders(tmp_path: Path, base: Path) -> None:
    output = Output.claimed(tmp_path / "deep" / "out", force=False, base=base, needed_bytes=0)
    with pytest.raises(RuntimeError):
        break_off(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_an_existing_path_is_refused_without_force(tmp_path: Path, base: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"(?s)exists already.*--force"):
        build(tmp_path / "out", base, "new")


def test_force_replaces_an_earlier_artifact(tmp_path: Path, base: Path) -> None:
    build(tmp_path / "out", base, "old")
    build(tmp_path / "out", base, "new", force=True)
    assert text_at(tmp_path / "out") == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_a_forced_build_that_fails_leaves_the_old_artifact(tmp_path: Path, base: Path) -> None:
    build(tmp_path / "out", base, "old")
    output = Output.claimed(tmp_path / "out", force=True, base=base, needed_bytes=0)
    with pytest.raises(RuntimeError):
        break_off(output)
    assert text_at(tmp_path / "out") == "old"


def test_force_never_touches_what_excise_did_not_build(tmp_path: Path, base: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    (tmp_path / "file").touch()
    fill(tmp_path / "real", "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("photos", "file", "link"):
        with pytest.raises(InputError, match="--force leaves it alone"):
            build(tmp_path / name, base, "new", force=True)


@pytest.mark.parametrize("place", ["base", "base/out", ".", "link/out"])
def test_the_base_is_never_written_to(tmp_path: Path, base: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(base)
    with pytest.raises(InputError):
        build(tmp_path / place, base, "new", force=True)


def test_a_disk_without_room_is_refused_before_any_work(tmp_path: Path, base: Path) -> None:
    with pytest.raises(InputError, match="but the disk has"):
        Output.claimed(tmp_path / "out", force=False, base=base, needed_bytes=10**18)


def test_a_path_through_a_file_is_refused(tmp_path: Path, base: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        build(tmp_path / "file" / "out", base, "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path, base: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(InputError, match="no permission"):
        build(tmp_path / "locked" / "out", base, "new")


def test_two_builds_of_one_place_do_not_mix(tmp_path: Path, base: Path) -> None:
    output = Output.claimed(tmp_path / "out", force=False, base=base, needed_bytes=0)
    with output.building(), pytest.raises(InputError, match="another build"), output.building():
        pytest.fail("claimed twice")


def test_what_appears_while_compiling_is_not_overwritten(tmp_path: Path, base: Path) -> None:
    output = Output.claimed(tmp_path / "out", force=False, base=base, needed_bytes=0)
    with output.building() as built:
        (tmp_path / "out").mkdir()
        with pytest.raises(InputError, match="appeared while compiling"):
            output.deliver(built)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_rejected_artifact_is_kept_aside_and_replaces_an_earlier_one(tmp_path: Path, base: Path) -> None:
    for text in ("first", "second"):
        output = Output.claimed(tmp_path / "out", force=False, base=base, needed_bytes=0)
        with output.building() as built:
            fill(built.folder, text)
            rejected = output.reject(built)
        assert rejected.folder == tmp_path / "rejected" / "out"
        assert text_at(rejected.folder) == text
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_the_disk_refuses_is_an_error_of_the_input(number: int, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, storage_refusals(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "weights"))
    assert caught.value.where == str(tmp_path / "weights")
    assert caught.value.remedy


def test_other_faults_stay_faults(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_refusals(tmp_path):
        (tmp_path / "none").read_text("utf-8")
