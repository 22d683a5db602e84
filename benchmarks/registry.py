"""How fast a registry of many builds lists, and how much variants of one base share.

Listing: an index of N builds with 25 files each; `excise registry list --json` from starting the process to
its end, and the query alone, each the best of three. Sharing: ten real builds on the embedded miniature, each
erasing another word in closed form, added beside their base; bytes of all folders over bytes stored.
With --full the variants are checkpoints of Stable Diffusion 1.4's size (random weights, true names and
shapes) whose cross-attention keys and values were edited.

Usage: python benchmarks/registry.py [--builds N] [--variants N] [--full] [--folder DIR] [--json]
Last line with --json: {"list_seconds": ..., "list_query_seconds": ..., "dedup_ratio": ..., ...}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.catalogue import Registry

sys.path.append(sys.path.pop(0))  # this folder last: or this file would be taken for the package `registry`

FILES = 25
WORDS = ("star", "heart", "moon", "house", "tree", "ring", "cross", "arrow", "fish", "dotted")


def fill(registry: Registry, count: int) -> None:
    """Enter `count` builds; what is listed does not depend on their bytes, so none are stored."""
    from registry import index
    from registry.history import CANDIDATE, Event
    from registry.tables import builds, events, files

    facts = {"edits": ["no-star", "no-heart"], "gates": {"erased-star": True}, "libraries": {"torch": "2"}}
    rows, listed, steps = [], [], []
    for number in range(count):
        build, checkpoint = _digest("build", number), _digest("checkpoint", number)
        described = {"kind": "artifact", "name": f"model-{number % 100}", "spec": "", "family": "sd1"}
        row = {**described, "passed": True, "relation": "", "origin": "", "base": _digest("base", 0)}
        rows.append({**row, "build": build, "checkpoint": checkpoint, "size": 2_000_000_000, "facts": facts})
        for place in range(FILES):
            file = {"path": f"part/{place}", "size": 80_000_000, "sha256": _digest(build, place)}
            listed.append({**file, "build": build})
        event = Event(build, 1, CANDIDATE, f"2030-01-01T00:00:00.{number:06d}+00:00", "", "", "")
        step = {name: value for name, value in event.__dict__.items() if name != "by"}
        steps.append({**step, "actor": "", "digest": event.digest})
    with registry.database.writing() as connection:
        for table, given in ((builds, rows), (files, listed), (events, steps)):
            index.insert_new(connection, table, given)


def listing(folder: Path, count: int) -> dict[str, float]:
    """Seconds to list `count` builds: the whole command, and the query."""
    from registry.catalogue import Registry

    registry = Registry.open(folder, create=True)
    fill(registry, count)
    command = [sys.executable, "-c", "from excise.cli import main; main()", "registry", "list", "--json"]
    whole, query = [], []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([*command, "--registry", str(folder)], check=True, capture_output=True)
        whole.append(time.perf_counter() - start)
        assert len(json.loads(done.stdout)) == count
        start = time.perf_counter()
        assert len(registry.entries()) == count
        query.append(time.perf_counter() - start)
    return {"builds": count, "list_seconds": min(whole), "list_query_seconds": min(query)}


def sharing(folder: Path, variants: Iterator[tuple[str, Path]]) -> dict[str, float]:
    """Bytes of all folders over bytes stored; the first is the base."""
    from registry.adding import add
    from registry.catalogue import Registry

    registry = Registry.open(folder, create=True)
    start = time.perf_counter()
    added = [add(registry, path, name=name) for name, path in variants]
    seconds = time.perf_counter() - start
    total, stored = sum(one.size for one in added), sum(registry.store.sizes().values())
    return {
        "variants": len(added) - 1,
        "dedup_ratio": total / stored,
        "folders_mb": total / 1e6,
        "stored_mb": stored / 1e6,
        "stored_mb_of_a_variant": sum(one.stored for one in added[1:]) / 1e6 / max(1, len(added) - 1),
        "seconds_with_compiling": seconds,
    }


def miniatures(folder: Path, count: int) -> Iterator[tuple[str, Path]]:
    """The embedded model, then builds of it; each erases another word."""
    from editspec import parse_spec
    from excise import embedded
    from excise.commands.compile import build
    from excise.miniature.assets import export

    embedded.register()
    yield "miniature", export(folder / "base")
    for number in range(count):
        edit = {"id": "gone", "edit": "erase", "concept": WORDS[number], "method": "closed-form"}
        spec = {"editspec": 1, "name": f"no-{WORDS[number]}", "base": {"path": "miniature"}, "edits": [edit]}
        artifact = build(parse_spec(json.dumps(spec)), folder / WORDS[number], cache=folder / "cache")
        yield f"no-{WORDS[number]}", artifact.folder


def full_size(folder: Path, count: int) -> Iterator[tuple[str, Path]]:
    """A checkpoint of 2.1 GB, then variants of it; each is removed before the next is made."""
    import shutil

    from full_size import full_size_checkpoint
    from link import store_deltas

    from compiler.checkpoint import Checkpoint
    from compiler.link import link

    base = Checkpoint.open(full_size_checkpoint(folder / "base", "sd1"))
    yield "base", base.root
    for number in range(count):
        out = folder / "variant"
        deltas = store_deltas(base, "cross-attention-kv", folder / f"deltas-{number}" / "deltas.safetensors")
        link(base, deltas, out)
        yield f"variant-{number}", out
        shutil.rmtree(out)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--builds", type=int, default=10_000)
    parser.add_argument("--variants", type=int, default=10, choices=range(1, len(WORDS) + 1), metavar="N")
    parser.add_argument("--full", action="store_true", help="variants of Stable Diffusion 1.4's size")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="excise-registry-", dir=arguments.folder) as name:
        folder = Path(name)
        figures = listing(folder / "many", arguments.builds)
        made = (full_size if arguments.full else miniatures)(folder, arguments.variants)
        figures |= sharing(folder / "shared", made)
    figures = {name: round(figure, 3) for name, figure in figures.items()}
    for name, figure in figures.items():
        print(f"{name:>26} {figure}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
