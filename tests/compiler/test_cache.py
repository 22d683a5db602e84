from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.cache import StageCache, default_root

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def words(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "words.txt").write_text(text, "utf-8")

    return write


def test_what_was_put_is_found_under_its_key(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    key = cache.key({"stage": "test"})
    assert cache.get(key) is None
    assert not cache.has(key)
    entry = cache.put(key, words("flame"))
    assert (entry / "words.txt").read_text("utf-8") == "flame"
    assert cache.get(key) == entry
    assert cache.has(key)


def test_the_first_result_stays_and_is_not_computed_again(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    cache.put("a" * 64, words("first"))
    entry = cache.put("a" * 64, lambda folder: pytest.fail("the result was there"))
    assert (entry / "words.txt").read_text("utf-8") == "first"


@pytest.mark.parametrize("damage", ["changed", "shortened", "missing", "extra", "no contents"])
def test_a_damaged_entry_counts_as_absent_and_is_built_again(tmp_path: Path, damage: str) -> None:
    cache = StageCache(tmp_path)
    entry = cache.put("b" * 64, words("good"))
    match damage:
        case "changed":
            (entry / "words.txt").write_text("evil", "utf-8")
        case "shortened":
            (entry / "words.txt").write_text("go", "utf-8")
        case "missing":
            (entry / "words.txt").unlink()
        case "extra":
            (entry / "more.txt").write_text("x", "utf-8")
        case "no contents":
            (entry / ".contents.json").unlink()
    assert cache.get("b" * 64) is None
    again = cache.put("b" * 64, words("good"))
    assert (again / "words.txt").read_text("utf-8") == "good"


def test_a_result_whose_writing_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half", "utf-8")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        cache.put("c" * 64, fail)
    assert cache.get("c" * 64) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_writer_killed_half_way_leaves_no_entry_and_its_leftovers_are_swept(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from compiler.cache import StageCache\n"
        "def write(folder):\n"
        "    (folder / 'half.txt').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
        "StageCache(Path(sys.argv[1])).put('d' * 64, write)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = StageCache(tmp_path)
    assert cache.get("d" * 64) is None
    assert list(tmp_path.rglob("half.txt")), "the kill came too late to test anything"
    cache.put("e" * 64, words("another"))
    assert list(tmp_path.rglob("half.txt")) == []


def _put_slowly(root: Path, letter: str) -> None:
    def write(folder: Path) -> None:
        for number in range(20):
            (folder / f"{number}.txt").write_text(letter, "utf-8")
            time.sleep(0.002)

    StageCache(root).put("f" * 64, write)


def test_two_processes_that_put_one_key_agree_on_one_whole_result(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_put_slowly, args=(tmp_path, letter)) for letter in "xyz"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    entry = StageCache(tmp_path).get("f" * 64)
    assert entry is not None
    assert len({(entry / f"{number}.txt").read_text("utf-8") for number in range(20)}) == 1


@given(JSON)
def test_a_key_is_the_same_for_equal_json_whatever_its_order(value: object) -> None:
    assert StageCache.key({"a": value, "b": 1}) == StageCache.key({"b": 1, "a": value})
    assert len(StageCache.key(value)) == 64


def test_keys_refuse_what_is_no_json() -> None:
    with pytest.raises(ValueError):
        StageCache.key({"loss": float("nan")})


def test_the_cache_lies_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"
    monkeypatch.delenv("EXCISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert default_root() == tmp_path / "xdg" / "excise"
