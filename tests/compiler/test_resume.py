"""Kills compiles, truly and at every kind of instant, and lets them go on.

Run as a program, this file is the victim's warm parent: it loads torch once and forks a child for each build,
which shoots itself (SIGKILL) at a chosen event of the file system, counted by an audit hook from the last of
its marks: the beginning of each pass, and the exchange of an old artifact for the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

EVENTS = (
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "shutil.rmtree",
    "ctypes.dlsym",
)
PASSES = 3


@pytest.fixture(scope="module")
def builds(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Outcome of all builds, killed and undisturbed, made by one child process."""
    place = tmp_path_factory.mktemp("builds")
    done = subprocess.run(
        [sys.executable, __file__, str(tiny_checkpoint), str(place)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def test_two_builds_of_one_spec_are_equal_byte_for_byte(builds: dict[str, Any]) -> None:
    assert builds["first"]["files"] == builds["undisturbed"]["files"]
    assert len(builds["first"]["files"]) > 15


def test_the_kills_were_real_and_spread_over_the_whole_build(builds: dict[str, Any]) -> None:
    assert builds["undisturbed"]["signal"] == 0
    assert [killed["signal"] for killed in builds["killed"]] == [signal.SIGKILL] * 8
    assert [killed["passes_begun"] for killed in builds["killed"]] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_killed_build_leaves_nothing_at_the_output_path_or_everything(builds: dict[str, Any]) -> None:
    whole = builds["undisturbed"]["files"]
    assert len(whole) > 10
    for killed in builds["killed"]:
        assert killed["files"] in ({}, whole)


def test_going_on_gives_the_bytes_of_an_undisturbed_build(builds: dict[str, Any]) -> None:
    for killed in builds["killed"]:
        assert killed["resumed"]["files"] == builds["undisturbed"]["files"]


def test_at_most_the_pass_in_flight_is_run_again(builds: dict[str, Any]) -> None:
    for killed in builds["killed"]:
        assert killed["resumed"]["passes_begun"] <= 3 + 1


def test_nothing_is_left_beside_the_output_or_in_the_cache(builds: dict[str, Any]) -> None:
    for killed in builds["killed"]:
        assert killed["resumed"]["beside"] == ["out"]
        assert killed["resumed"]["building"] == []


def test_a_forced_rebuild_that_is_killed_leaves_the_old_artifact_or_the_new_one(
    builds: dict[str, Any],
) -> None:
    assert [killed["signal"] for killed in builds["forced"]] == [signal.SIGKILL] * len(builds["forced"])
    old, new = builds["undisturbed"]["files"], builds["other"]["files"]
    assert old != new
    found = [
        "old" if killed["files"] == old else "new" if killed["files"] == new else "ruins"
        for killed in builds["forced"]
    ]
    assert found == ["old", "old", "new", "new"], (
        "before the exchange, at it, and while the old one is removed"
    )


def main(checkpoint: Path, place: Path) -> None:
    """Make all builds and print what became of them."""
    first = build(checkpoint, place / "first")
    undisturbed = build(checkpoint, place / "undisturbed")
    killed: list[dict[str, Any]] = []
    for mark, events in enumerate(undisturbed["events"]):
        for after in (2, events // 2):
            here = place / f"killed-{len(killed)}"
            fact = build(checkpoint, here, die_at=(mark, after))
            fact["resumed"] = build(checkpoint, here)
            killed.append(fact)
    other = build(checkpoint, place / "other", seed=1)
    forced: list[dict[str, Any]] = []
    for instant in ((PASSES, 20), (PASSES + 1, 1), (PASSES + 1, 2), (PASSES + 1, 9)):
        here = shutil.copytree(place / "undisturbed", place / f"forced-{len(forced)}")
        forced.append(build(checkpoint, here, die_at=instant, seed=1, force=True))
    facts = {"first": first, "undisturbed": undisturbed, "killed": killed, "other": other, "forced": forced}
    print(json.dumps(facts))


def build(
    checkpoint: Path, place: Path, die_at: tuple[int, int] = (-1, 0), seed: int = 0, force: bool = False
) -> dict[str, Any]:
    """Compile in a forked child that kills itself at `die_at`: (marks passed, events since)."""
    place.mkdir(exist_ok=True)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.write(write, json.dumps(compile_in(checkpoint, place, die_at, seed, force)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        events = json.loads(pipe.read() or b"[]")
    _, status = os.waitpid(child, 0)
    log, out = place / "log", place / "results" / "out"
    beside = sorted(path.name for path in out.parent.iterdir()) if out.parent.is_dir() else []
    building = place / "cache" / "building"
    return {
        "signal": os.waitstatus_to_exitcode(status) * -1,
        "events": events,
        "files": {
            path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(out.rglob("*"))
            if path.is_file()
        },
        "passes_begun": len(log.read_text("utf-8").split()) if log.exists() else 0,
        "beside": beside,
        "building": sorted(path.name for path in building.iterdir()) if building.is_dir() else [],
    }


def compile_in(checkpoint: Path, place: Path, die_at: tuple[int, int], seed: int, force: bool) -> list[int]:
    """One build; how many file-system events it caused before the first mark and after each."""
    from compiler.cache import StageCache
    from compiler.device import choose
    from compiler.pipeline import compile_spec
    from editspec import parse_spec
    from exporters.card import write_card
    from registry.manifest import write_manifest

    edits = [
        {"id": name, "edit": "erase", "concept": name, "method": method}
        for name, method in (("star", "esd"), ("moon", "esd"), ("tree", "closed-form"))
    ]
    document = {
        "editspec": 1,
        "name": "killed",
        "base": {"path": str(checkpoint)},
        "seed": seed,
        "edits": edits,
    }
    spec = parse_spec(json.dumps(document))
    counts = [0]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        if str(place / "log") in map(str, arguments) or "renameat2" in map(str, arguments):
            counts.append(0)
        counts[-1] += 1
        if (len(counts) - 1, counts[-1]) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    compile_spec(
        spec,
        place / "results" / "out",
        cache=StageCache(place / "cache"),
        device=choose("cpu"),
        force=force,
        finish=(write_card, write_manifest),
        passes=passes(place / "log"),
    )
    return counts


def passes(log: Path) -> Sequence[Any]:
    """Two passes that are quick, really change weights, and note when they begin."""
    from compiler.passes import EditPass, PassContext, PassCost, PassResult
    from compiler.seeds import gaussian
    from compiler.selections import select

    class Nudge(EditPass):
        version = 1

        def accepts(self, edit: Any) -> bool:
            return self.name == f"{edit.edit}/{edit.method}"

        def targets(self, edits: Sequence[Any], entries: Mapping[str, Any]) -> tuple[str, ...]:
            return select(entries, "cross-attention-kv")

        def cost(self, edits: Sequence[Any], spec: Any, checkpoint: Any) -> PassCost:
            return PassCost(0, 0.1, 10**6)

        def run(self, edits: tuple[Any, ...], context: PassContext) -> PassResult:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{edits[0].id}\n")
            names = self.targets(edits, context.checkpoint.weights("unet").entries)
            weights = {name: context.weight(name) for name in names}
            noise = {
                name: gaussian(tuple(weight.shape), context.seed, name) for name, weight in weights.items()
            }
            # Depends on what came before, so that a pass run out of order or twice would show.
            return PassResult(
                {name: 0.1 * weights[name] * noise[name] for name in names}, {"edits": len(edits)}
            )

    class Distilled(Nudge):
        name, order, merges = "erase/esd", 10, False

    class Solved(Nudge):
        name, order, merges = "erase/closed-form", 90, True

    return Distilled(), Solved()


def warm() -> None:
    """Load what every child needs, and compute nothing: threads do not survive a fork."""
    import importlib

    modules = ("compiler.pipeline", "compiler.link", "compiler.seeds", "exporters.card", "registry.manifest")
    for name in (*modules, "torch._inductor", "huggingface_hub.repocard_data"):
        importlib.import_module(name)


if __name__ == "__main__":
    warm()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
