"""Publishing through a failing Hub: seeded faults at random requests of a push, by the true client.

Each round begins with a published build in the repository. A push of the next build meets one fault, of a
random kind at a random request of a random step; some last for one request, some until the push gives up.
Then the server is looked at: every commit must hold the old build or the whole new one, and a tag of the new
build only that. Then the push is repeated without faults and must end in exactly the new build's files, one
commit and one tag.

Usage: python benchmarks/hub_faults.py [--faults 50] [--seed 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "exporters")]
os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the faults are ours; they need no telling

from local_hub import FAULTS, TOKEN, LocalHub, short_waits  # noqa: E402
from small_artifact import build, contents, read  # noqa: E402

from editspec.errors import GateFailed, InputError  # noqa: E402
from exporters.hub import BUILD_TAG, push  # noqa: E402

NAME = "maker/small"
PARTS = 2**16
LASTING = ("unavailable", "reset", "lost", "failed", "cut")  # these may also go on until the push gives up


def requests_of_a_push(old: Path, new: Path) -> list[str]:
    """What one undisturbed push asks for, after the old build is there."""
    with LocalHub(part_bytes=PARTS) as hub:
        os.environ["HF_ENDPOINT"] = hub.endpoint
        push(read(old), NAME)
        hub.requests.clear()
        push(read(new), NAME)
        return list(hub.requests)


def step_of(request: str) -> str:
    """What a request is for, whatever it is about: so that one commit is met as often as many parts are."""
    return re.sub(r"[0-9a-f]{40,}(?=/|$)", "*", re.sub(r"/\d+$", "/*", request))


def where_it_bites(kind: str, requests: list[str]) -> list[int]:
    """The requests of a push at which a fault of this kind makes a difference."""
    if kind == "conflict":  # someone else's commit is to the repository that the request is about
        return [number for number, request in enumerate(requests) if f"/{NAME}/" in request]
    if kind == "full":  # room is asked for once
        return list(range(1 + next(n for n, request in enumerate(requests) if request.endswith("/batch"))))
    return list(range(len(requests)))


def one_round(number: int, draws: random.Random, old: Path, new: Path, requests: list[str]) -> dict[str, Any]:
    """One fault, what was visible after it, and where the repeated push ended."""
    kind = draws.choice(sorted(FAULTS))
    bites = where_it_bites(kind, requests)
    step = draws.choice(sorted({step_of(requests[number]) for number in bites}))
    after = draws.choice([number for number in bites if step_of(requests[number]) == step])
    times = draws.choice((1, 1, 10**6)) if kind in LASTING else 1
    with LocalHub(part_bytes=PARTS) as hub:
        os.environ["HF_ENDPOINT"] = hub.endpoint
        push(read(old), NAME)
        repository = hub.state.repositories[NAME]
        allowed = [contents(old), contents(new)]
        hub.requests.clear()
        hub.fail("", kind, times=times, after=after)
        try:
            push(read(new), NAME, pauses=(0.0, 0.0))
            outcome = "outlived"
        except (InputError, GateFailed) as error:
            outcome = str(error)
        met = hub.requests[after] if len(hub.requests) > after else None
        theirs = {oid for oid, one in repository.revisions.items() if one.title == "someone else"}
        partial = sum(
            hub.files(NAME, oid) not in allowed
            for oid, one in repository.revisions.items()
            if oid not in theirs and one.parent is not None
        )
        digest = read(new).digest
        tag = repository.tags.get(BUILD_TAG + digest)
        wrong_tag = tag is not None and hub.files(NAME, tag) != contents(new)
        hub.heal()
        if (kind, outcome) == ("conflict", "outlived"):
            converged = hub.files(NAME, BUILD_TAG + digest) == contents(new)  # the branch is theirs now
        else:
            push(read(new), NAME)
            ours = [oid for oid in repository.revisions if oid not in theirs]
            converged = (
                hub.files(NAME) == hub.files(NAME, BUILD_TAG + digest) == contents(new)
                and hub.files(NAME, BUILD_TAG + read(old).digest) == contents(old)
                and len(ours) == 3  # the first, the old build, the new one: nothing was committed twice
            )
    return {
        "number": number,
        "kind": kind,
        "lasting": times > 1,
        "request": met,
        "outcome": outcome.splitlines()[0],
        "partial": partial,
        "wrong_tag": wrong_tag,
        "converged": converged,
        "leaked": TOKEN in outcome,
    }


def measure(faults: int, seed: int) -> dict[str, Any]:
    """All rounds, and what they come to."""
    draws = random.Random(seed)
    os.environ["HF_TOKEN"] = TOKEN
    rounds = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="excise-hub-") as folder, short_waits():
        old, new = build(Path(folder) / "old", 1), build(Path(folder) / "new", 2)
        requests = requests_of_a_push(old, new)
        for number in range(faults):
            rounds.append(one_round(number, draws, old, new, requests))
            line = rounds[-1]
            print(
                f"{number:3} {line['kind']:<12}{'lasting ' if line['lasting'] else '        '}"
                f"{line['request']} -> {line['outcome'][:100]}",
                file=sys.stderr,
            )
    return {
        "faults": faults,
        "seed": seed,
        "requests_of_a_push": len(requests),
        "kinds": dict(Counter(line["kind"] for line in rounds)),
        "met": sum(line["request"] is not None for line in rounds),
        "outlived": sum(line["outcome"] == "outlived" for line in rounds),
        "refused": sum(line["outcome"] != "outlived" for line in rounds),
        "partial_releases_visible": sum(line["partial"] + line["wrong_tag"] for line in rounds),
        "converged_after_retry": sum(line["converged"] for line in rounds),
        "tokens_shown": sum(line["leaked"] for line in rounds),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Measure and print; exits with 1 where a release was partial or a retry did not converge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on the last line")
    arguments = parser.parse_args()
    figures = measure(arguments.faults, arguments.seed)
    for name, figure in figures.items():
        print(f"{name:>26} {figure}")
    if arguments.json:
        print(json.dumps(figures))
    bad = figures["partial_releases_visible"] or figures["converged_after_retry"] < arguments.faults
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
