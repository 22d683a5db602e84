"""Real processes on one registry: adding, promoting, sweeping and being killed at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.adding import add
from registry.catalogue import Registry
from registry.checking import check
from registry.description import describe
from registry.history import CANDIDATE, RELEASED, WITHDRAWN
from registry.sweep import sweep

K, V, MID = "down.attn2.to_k.weight", "down.attn2.to_v.weight", "mid.weight"
ROOT = Path(__file__).parents[2]

OPEN = """
import sys
from pathlib import Path
from editspec.errors import GateFailed, InputError
from registry.catalogue import Registry
folder, index, store = sys.argv[1:4]
registry = Registry.open(Path(folder), index=index or None, store=store or None, create=True)
"""
ADD = (
    OPEN
    + """
from registry.adding import add
for path in sys.argv[4:]:
    add(registry, Path(path))
"""
)
SWEEP = (
    OPEN
    + """
from registry.sweep import sweep
for _ in range(int(sys.argv[4])):
    sweep(registry, patience=120)
"""
)
PROMOTE = (
    OPEN
    + """
try:
    registry.promote(sys.argv[4], sys.argv[5], reason="by " + sys.argv[6], by=sys.argv[6])
except InputError as error:
    print(error.what)
"""
)


@pytest.fixture
def start(place: Any) -> Callable[..., subprocess.Popen[str]]:
    def call(script: str, *arguments: object) -> subprocess.Popen[str]:
        where = [str(place.folder), place.index or "", place.store or ""]
        environment = {**os.environ, **place.environment, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", script, *where, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


def opened(place: Any) -> Registry:
    return Registry.open(place.folder, index=place.index, store=place.store, create=True)


def finished(*processes: subprocess.Popen[str]) -> list[str]:
    said = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        said.append(out.strip())
    return said


def test_many_writers_and_a_sweep_lose_nothing_and_enter_everything_once(
    place: Any, start: Callable[..., subprocess.Popen[str]], make_build: Any, base_folder: Path
) -> None:
    builds = [make_build(f"v{seed}", {K: seed, MID: seed % 2}) for seed in range(6)]
    # Each build is added by two processes; nobody has made the registry before them.
    finished(
        start(ADD, base_folder, *builds[:4]),
        start(ADD, *builds[2:], base_folder),
        start(ADD, *reversed(builds[:2]), builds[5], builds[4]),
        start(SWEEP, 6),
    )
    registry = opened(place)
    assert Counter(entry.build for entry in registry.entries()) == Counter(
        describe(folder).build for folder in [base_folder, *builds]
    )
    assert check(registry, registry.entries(), deep=True) == []
    assert [len(registry.history(entry)) for entry in registry.entries()] == [1] * 7
    assert registry.stored_bytes() == sum(registry.store.sizes().values())
    assert sweep(registry).removed == 0


def test_of_several_who_decide_at_once_one_prevails_and_the_others_are_told(
    place: Any, start: Callable[..., subprocess.Popen[str]], make_build: Any
) -> None:
    registry = opened(place)
    build = add(registry, make_build("model", {K: 1})).build
    said = finished(
        *(start(PROMOTE, build, RELEASED, name) for name in ("ann", "bob")),
        start(PROMOTE, build, WITHDRAWN, "eve"),
    )
    states = [event.state for event in registry.history(registry.find(build))]
    assert states in ([CANDIDATE, RELEASED, WITHDRAWN], [CANDIDATE, WITHDRAWN])
    assert sum(1 for text in said if not text) == len(states) - 1
    assert check(registry, registry.entries()) == []


def test_a_writer_killed_at_any_time_leaves_nothing_that_counts(
    place: Any, start: Callable[..., subprocess.Popen[str]], make_build: Any
) -> None:
    registry = opened(place)
    kept = add(registry, make_build("kept", {V: 9})).build
    folder = make_build("killed", {K: 1, MID: 2})
    before = registry.store.sizes()
    slow = OPEN + (
        "import time\nfrom registry.blobs import BlobStore\nput = BlobStore.put\n"
        "def slowly(self, digest, data):\n    put(self, digest, data)\n    time.sleep(0.3)\n"
        "BlobStore.put = slowly\nfrom registry.adding import add\nadd(registry, Path(sys.argv[4]))\n"
    )
    process = start(slow, folder)
    until = time.monotonic() + 120
    while registry.store.sizes().keys() <= before.keys() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [entry.build for entry in registry.entries()] == [kept]
    left = registry.store.sizes().keys() - before.keys()
    assert left
    swept = sweep(registry, patience=120)
    assert swept.removed >= len(left)
    assert registry.store.sizes() == before
    assert add(registry, folder).new
    assert check(registry, registry.entries(), deep=True) == []


def test_a_sweep_waits_for_a_writer_and_a_writer_for_a_sweep(
    place: Any, start: Callable[..., subprocess.Popen[str]], make_build: Any
) -> None:
    """A blob that a writer found in the store is never swept before that writer has entered its build."""
    registry = opened(place)
    folder = make_build("model", {K: 1})
    with registry.database.shared():
        process = start(SWEEP, 1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=3)
        registry.store.put("0" * 64, b"not yet entered")
    finished(process)
    assert registry.store.sizes() == {}
    with registry.database.alone(5):
        process = start(ADD, folder)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=3)
        assert registry.store.sizes() == {}
    finished(process)
    assert len(registry.entries()) == 1
