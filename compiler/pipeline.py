"""The compile pipeline, the page to read first: spec and base in, checked and proven artifact out.

Stages, each followed by its check; what is costly is cached under a digest of all that influenced it:

1. open and pin the base    every file by sha256, the libraries, the class of machine: lock.json
2. plan                     passes in order, targets, gates and their sample sizes: plan.json
3. run the passes           only declared targets moved, shapes and types as in the base, all finite;
                            how much later ones disturbed earlier ones is measured
4. link                     base files + changes -> plain checkpoint; the base is still what was pinned;
                            what no pass may change is copied while they run
5. write the provenance     editspec, lock, plan, edits, deltas and their parts
6. prove                    the gates measure the linked checkpoint: gates.json
7. finish                   what others add: model card, manifest
8. deliver                  one rename, to the output path or, where a gate failed, to `rejected/`

Linking is not cached: storing its result would write as many bytes as linking again.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler import artifact as layout
from compiler.artifact import Artifact
from compiler.atomic import flushing
from compiler.base import open_base
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.collateral import mined_words
from compiler.device import Device, choose
from compiler.output import Output, storage_refusals
from compiler.passes import EditPass, PassContext
from compiler.plan import Plan, PlannedPass, make_plan
from compiler.progress import Progress, Silent
from compiler.provenance import edits_record, lock_record, published_spec
from editspec.errors import GateFailed

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.link import Linking, LinkReport
    from editspec import EditSpec

Finish = Callable[[Artifact], None]

RECORD = "record.json"
DELTAS = "deltas.safetensors"
ROOM_BESIDE_BASE = 64 * 2**20  # bytes for the card, the grid and the records


class StageFault(Exception):
    """A stage broke its own promise: a fault of a pass or of Excise, not of the input."""


def compile_spec(
    spec: EditSpec,
    out: Path,
    *,
    cache: StageCache | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
    force: bool = False,
    finish: Sequence[Finish] = (),
    passes: Sequence[EditPass] | None = None,
) -> Artifact:
    """Compile `spec` into the folder `out`, which appears whole or not at all.

    `force` replaces an earlier artifact at `out`, which
    stays until the new one is complete. `finish` callbacks get the unfinished folder before it is delivered.
    Killed at any instant, the same call goes on after the last finished stage. `InputError`: nothing was
    written. `GateFailed`: the artifact is in `rejected/` beside `out`.
    """
    cache = cache or StageCache()
    device = device or choose()
    progress = progress or Silent()
    with storage_refusals(out):
        checkpoint = open_base(spec.base, spec.folder)
        with imported_beside("torch", "transformers.models.clip.tokenization_clip"):
            plan = make_plan(spec, checkpoint, cache, device, passes)
        output = Output.claimed(
            out, force=force, base=checkpoint.root, needed_bytes=_bytes_of(checkpoint, plan)
        )
        with output.building() as built:
            with flushing() as flush:
                with link_begun(checkpoint, plan, built, flush) as begun:
                    deltas, parts, records = run_passes(spec, checkpoint, plan, cache, progress)
                    report = link_checkpoint(checkpoint, plan, deltas, begun, progress)
                write_provenance(built, spec, checkpoint, plan, deltas, parts, records, report)
                flush(built.folder)
                failed = prove(built, spec, checkpoint, device, cache, progress, mined_words(records))
                for callback in finish:
                    callback(built)
            if failed:
                kept = output.reject(built).folder
                raise GateFailed("\n  ".join([*failed, f"the artifact is kept in {kept}"]))
            return output.deliver(built)


@contextlib.contextmanager
def imported_beside(*modules: str) -> Iterator[None]:
    """Import `modules` in a thread of their own while the base is hashed, which needs seconds as they do.

    Leaving waits for them. What cannot be imported is told by who needs it.
    """

    def import_all() -> None:
        with contextlib.suppress(Exception):
            for module in modules:
                importlib.import_module(module)

    thread = threading.Thread(target=import_all)
    thread.start()
    yield
    thread.join()


def run_passes(
    spec: EditSpec, checkpoint: Checkpoint, plan: Plan, cache: StageCache, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Any]]]:
    """All changes, fp32 by U-Net name; their parts where runs share a tensor; a record of each run."""
    from compiler import deltas as changed
    from compiler.seeds import reproducible

    changes: dict[str, Tensor] = {}
    runs: list[dict[str, Tensor]] = []
    records: list[dict[str, Any]] = []
    torch_device = plan.device.open()
    shared: dict[str, Any] = {}  # the text encoder, loaded once
    with reproducible(), progress.task("passes", len(plan.passes)) as task:
        for planned in plan.passes:
            context = PassContext(
                spec, checkpoint, changes, spec.seed, torch_device, cache, progress, _shared=shared
            )
            deltas, record = run_pass(planned, context)
            changes = changed.added(changes, deltas)
            runs.append(deltas)
            records.append(record)
            task.advance()
        if len(runs) > 1 and any(planned.evals for planned in plan.passes):
            # A build that samples nothing loads no U-Net, and is not made to for this.
            measure_interference(plan, runs, context, records)
    return changes, changed.parts(runs), records


def measure_interference(
    plan: Plan, each: Sequence[Mapping[str, Tensor]], context: PassContext, records: list[dict[str, Any]]
) -> None:
    """Add to each pass's record but the last's how much the passes after it disturbed what it did."""
    from compiler.interference import VERSION, interference

    keys = [planned.key for planned in plan.passes]
    key = context.cache.key({"stage": "interference", "version": VERSION, "passes": keys})

    def measure(folder: Path) -> None:
        rows = interference(plan.passes, each, context)
        (folder / RECORD).write_text(json.dumps(rows, allow_nan=False) + "\n", "utf-8")

    stored = context.cache.get(key) or context.cache.put(key, measure)
    for record, found in zip(records, json.loads((stored / RECORD).read_text("utf-8")), strict=False):
        record["interference"] = found


def run_pass(planned: PlannedPass, context: PassContext) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One planned run, from the cache where it is there; its changes and its record."""
    from compiler.deltas import load

    stored = context.cache.get(planned.key)
    if stored is None:
        stored = context.cache.put(planned.key, lambda folder: _run_into(folder, planned, context))
    record: dict[str, Any] = json.loads((stored / RECORD).read_text("utf-8"))
    return load(stored / DELTAS), record


def _run_into(folder: Path, planned: PlannedPass, context: PassContext) -> None:
    from compiler.deltas import DeltaFault, check, save, statistics

    edits = tuple(context.spec.edits[position] for position in planned.edits)
    result = planned.edit_pass.run(edits, context)
    deltas = {name: delta.detach().to("cpu") for name, delta in sorted(result.deltas.items())}
    try:
        check(deltas, planned.targets, context.checkpoint.weights("unet").entries)
    except DeltaFault as fault:
        raise StageFault(f"after '{planned.title}': {fault}") from fault
    moved = [statistics(name, delta, context.weight(name)) for name, delta in deltas.items()]
    record = {**planned.as_dict(), "tensors": moved, "record": dict(result.record)}
    save(deltas, folder / DELTAS)
    (folder / RECORD).write_text(
        json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n", "utf-8"
    )


@contextlib.contextmanager
def link_begun(
    checkpoint: Checkpoint, plan: Plan, built: Artifact, flush: Callable[[Path], None]
) -> Iterator[Linking]:
    """Copy what no pass may change into the artifact, and to disk, while the passes run."""
    from compiler.link import linking

    targets = {name for planned in plan.passes for name in planned.targets}
    with linking(checkpoint, targets, built.folder, flush) as begun:
        yield begun


def link_checkpoint(
    checkpoint: Checkpoint, plan: Plan, deltas: Mapping[str, Tensor], begun: Linking, progress: Progress
) -> LinkReport:
    """Finish the checkpoint's files in the artifact; the base must still be what was pinned."""
    with progress.task("link"):
        report = begun.fold(deltas)
    if Checkpoint.open(checkpoint.root, checkpoint.variant).digest != plan.base_digest:
        raise StageFault("after 'link': the base checkpoint changed while it was compiled; compile again")
    return report


def write_provenance(
    built: Artifact,
    spec: EditSpec,
    checkpoint: Checkpoint,
    plan: Plan,
    deltas: Mapping[str, Tensor],
    parts: Mapping[str, Tensor],
    records: Sequence[Mapping[str, Any]],
    report: LinkReport,
) -> None:
    """Write what the artifact was made from and what was changed. No times, hosts or local paths in it."""
    from compiler.deltas import save

    built.write(layout.SPEC, published_spec(spec))
    built.write(layout.LOCK, lock_record(spec, checkpoint, plan))
    built.write(layout.PLAN, plan.as_dict())
    built.write(layout.EDITS, edits_record(checkpoint, deltas, records, report))
    save(deltas, built.path(layout.DELTAS))
    if parts:
        save(parts, built.path(layout.PARTS))


def prove(
    built: Artifact,
    spec: EditSpec,
    checkpoint: Checkpoint,
    device: Device,
    cache: StageCache,
    progress: Progress,
    mined: Sequence[str] = (),
) -> list[str]:
    """Let the gates measure the linked checkpoint; write gates.json; which failed and why.

    `mined` are the neighbours that the passes kept, for the collateral report.
    """
    from compiler.gates import run_gates

    report = run_gates(spec, checkpoint, built, spec.folder, device.open(), progress, cache, mined)
    built.write(layout.GATES, report.as_dict())
    return [f"{result.id}: {result.reason}" for result in report.results if not result.passed]


def _bytes_of(checkpoint: Checkpoint, plan: Plan) -> int:
    """Room that the artifact takes: the base's files again, fp32 changes, and some."""
    files = sum((checkpoint.root / name).stat().st_size for name in checkpoint.files())
    movers = Counter(name for planned in plan.passes for name in planned.targets)
    entries = checkpoint.weights("unet").entries
    # The total of each tensor, and where several runs move it the part of each.
    stored = sum(entries[name].parameters * (1 if n == 1 else 1 + n) for name, n in movers.items())
    return files + 4 * stored + ROOM_BESIDE_BASE
