"""Runs a benchmark and keeps its figures in benchmarks/results/, with the command and the class of machine.

It runs with `--json`, whether that is said or not: its last line must be a JSON object. Of the machine only
the number of cores and the GPU's name are kept; arguments that are absolute paths are kept as their last
part. `miniature` begins the digest of all that the miniature draws and is judged with: figures of one say
little of another.

Usage: python benchmarks/record.py NAME SCRIPT [ARGUMENT ...]
For example: python benchmarks/record.py registry benchmarks/registry.py --json
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DIGESTS = ROOT / "excise" / "miniature" / "data" / "digests.json"


def machine() -> str:
    """The class of this machine, in words: "2 CPU cores", or with the GPU that torch would use."""
    import torch

    cores = os.cpu_count() or 1
    words = f"{cores} CPU core{'s' if cores != 1 else ''}"
    return f"{words}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else words


def miniature() -> str:
    """The first digits of the digest of the list of digests: of the embedded model, the twin, the oracles."""
    return hashlib.sha256(DIGESTS.read_bytes()).hexdigest()[:12]


def shown(argument: str) -> str:
    """An argument as it is kept: of an absolute path, which tells of a machine, only the last part."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def main() -> None:
    """Run, show, keep; the benchmark's own exit code where it failed, and nothing is kept then."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    name, *command = sys.argv[1:]
    command = [*(word for word in command if word != "--json"), "--json"]  # hours may hang on it
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    lines = []
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)  # long benchmarks are watched as they go
            lines.append(line)
    if running.returncode:
        sys.exit(running.returncode)
    kept = {
        "command": shlex.join(("python", *map(shown, command))),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "miniature": miniature(),
        "result": json.loads("".join(lines).rstrip().splitlines()[-1]),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
