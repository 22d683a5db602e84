"""The plan: what a spec will do, in which order and at what cost, decided before any tensor is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compiler.cache import StageCache
from compiler.collateral import collateral_evals
from compiler.cost import eval_seconds
from compiler.device import Device
from compiler.licence import require_allowed
from compiler.mining import known_neighbours
from compiler.passes import EditPass, discover
from compiler.provenance import published_spec
from compiler.versions import library_versions
from compiler.windows import too_long
from editspec.canonical import digest
from editspec.errors import listed, quoted

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.gates import GatePlan
    from compiler.mining import Mining, Neighbours
    from editspec import Edit, EditSpec

VERSION = 1


@dataclass(frozen=True)
class PlannedPass:
    """One run of one pass: its edits (positions in the spec), what it may change, and what that takes."""

    edit_pass: EditPass
    edits: tuple[int, ...]
    ids: tuple[str, ...]
    targets: tuple[str, ...]
    parameters: int
    evals: int
    seconds: float
    memory_bytes: int
    key: str
    cached: bool
    mining: Mapping[str, Mining | None]
    neighbours: Mapping[str, Neighbours | None]
    """By edit id: what the cache holds of `mining`, None where it is not mined yet, () where nothing is."""

    @property
    def title(self) -> str:
        """`erase/esd: no-flame, no-crack`."""
        return f"{self.edit_pass.name}: {', '.join(self.ids)}"

    def as_dict(self) -> dict[str, Any]:
        """JSON facts that are the same for every build of the spec on this class of machine."""
        return {
            "pass": self.edit_pass.name,
            "version": self.edit_pass.version,
            "edits": list(self.ids),
            "targets": len(self.targets),
            "parameters": self.parameters,
            "evals": self.evals,
            "key": self.key,
        }


@dataclass(frozen=True)
class Plan:
    """All that a build will do. `gates` are compiler.gates' own plans, one for each gate."""

    name: str
    spec_digest: str
    base_digest: str
    family: str
    device: Device
    libraries: Mapping[str, str]
    passes: tuple[PlannedPass, ...]
    gates: tuple[GatePlan, ...]
    gate_evals: int
    seconds_of_eval: float

    @property
    def unmined(self) -> tuple[Mining, ...]:
        """Questions for neighbours that the cache cannot answer yet."""
        return tuple(
            one
            for planned in self.passes
            for id, one in planned.mining.items()
            if one is not None and planned.neighbours[id] is None
        )

    @property
    def evals(self) -> int:
        """U-Net evals of all passes that the cache does not hold, and of the gates."""
        return sum(planned.evals for planned in self.passes if not planned.cached) + self.gate_evals

    @property
    def seconds(self) -> float:
        """Estimated seconds of the same."""
        passes = sum(planned.seconds for planned in self.passes if not planned.cached)
        return passes + self.gate_evals * self.seconds_of_eval

    @property
    def memory_bytes(self) -> int:
        """Estimated peak of memory on the device."""
        return max((planned.memory_bytes for planned in self.passes), default=0)

    def as_dict(self) -> dict[str, Any]:
        """The reproducible part, as stored in provenance/plan.json: no estimates, nothing of the cache."""
        return {
            "plan": VERSION,
            "name": self.name,
            "spec": self.spec_digest,
            "base": self.base_digest,
            "family": self.family,
            "device": self.device.device_class,
            "libraries": dict(self.libraries),
            "passes": [planned.as_dict() for planned in self.passes],
            "gates": [gate.as_dict() for gate in self.gates],
        }

    def outlook(self) -> dict[str, Any]:
        """`as_dict` with this machine's estimates and what its cache holds, for `excise plan --json`."""
        passes = [
            {
                **planned.as_dict(),
                "reason": planned.edit_pass.reason,
                "seconds": round(planned.seconds, 1),
                "memory_bytes": planned.memory_bytes,
                "cached": planned.cached,
                **({"neighbours": dict(planned.neighbours)} if planned.neighbours else {}),
            }
            for planned in self.passes
        ]
        return {
            **self.as_dict(),
            "passes": passes,
            "machine": self.device.as_dict(),
            "gate_evals": self.gate_evals,
            "evals": self.evals,
            "seconds": round(self.seconds, 1),
            "memory_bytes": self.memory_bytes,
        }


def make_plan(
    spec: EditSpec,
    checkpoint: Checkpoint,
    cache: StageCache,
    device: Device,
    passes: Sequence[EditPass] | None = None,
) -> Plan:
    """Plan `spec` on `checkpoint`; `passes` are those of compiler.passes unless given.

    Raises `InputError` naming every edit that no engine compiles, or that does not suit the checkpoint.
    """
    engines = discover() if passes is None else tuple(passes)
    require_allowed(spec, checkpoint)
    groups = list(_groups(spec, engines))
    if misfits := _misfits(spec, checkpoint, groups):
        raise spec.errors(misfits)
    gates = _planned_gates(spec)
    if long := too_long(spec, checkpoint, gates):
        raise spec.errors(long)
    return Plan(
        name=spec.name,
        spec_digest=digest(published_spec(spec)),
        base_digest=checkpoint.digest,
        family=checkpoint.family,
        device=device,
        libraries=library_versions(),
        passes=tuple(_planned(spec, checkpoint, cache, device, groups)),
        gates=gates,
        gate_evals=sum(gate.evals for gate in gates) + (collateral_evals(spec) if gates else 0),
        seconds_of_eval=eval_seconds(checkpoint, device),
    )


def _groups(spec: EditSpec, engines: Sequence[EditPass]) -> Iterator[tuple[EditPass, tuple[int, ...]]]:
    """Which edits (by position) each pass runs with, in running order; refuses edits without an engine."""
    taken: dict[int, EditPass] = {}
    problems = []
    for position, edit in enumerate(spec.edits):
        accepting = [engine for engine in engines if engine.accepts(edit)]
        if len(accepting) > 1:
            raise TypeError(f"{' and '.join(engine.name for engine in accepting)} both accept {edit}")
        if accepting:
            taken[position] = accepting[0]
        else:
            problems.append((f"/edits/{position}/edit", *_no_engine(spec, position, engines)))
    if problems:
        raise spec.errors(problems)
    for engine in sorted(engines, key=lambda engine: (engine.order, engine.name)):
        positions = tuple(position for position, chosen in taken.items() if chosen is engine)
        if engine.merges and positions:
            yield engine, positions
        elif not engine.merges:
            yield from ((engine, group) for group in _together(spec, engine, positions))


def _together(spec: EditSpec, engine: EditPass, positions: Sequence[int]) -> list[tuple[int, ...]]:
    """The edits at `positions` by run: those that the pass wants together, and the others one by one."""
    groups: dict[str | int, list[int]] = {}
    for position in positions:
        word = engine.together(spec.edits[position])
        groups.setdefault(position if word is None else word, []).append(position)
    return [tuple(group) for group in groups.values()]


def _no_engine(spec: EditSpec, position: int, engines: Sequence[EditPass]) -> tuple[str, str]:
    """Message and remedy for an edit that the language knows and this version cannot compile."""
    edit = spec.edits[position]
    names = sorted(engine.name for engine in engines)
    message = f"edit {quoted(edit.id)}: this version has no engine for {quoted(f'{edit.edit}/{edit.method}')}"
    return message, f"there {'is' if len(names) == 1 else 'are'} {listed(names) or 'none'}"


def _misfits(
    spec: EditSpec, checkpoint: Checkpoint, groups: Sequence[tuple[EditPass, tuple[int, ...]]]
) -> list[tuple[str, str]]:
    return [
        problem
        for engine, positions in groups
        for problem in engine.check(_chosen(spec, positions), spec, checkpoint)
    ]


def _planned(
    spec: EditSpec,
    checkpoint: Checkpoint,
    cache: StageCache,
    device: Device,
    groups: Sequence[tuple[EditPass, tuple[int, ...]]],
) -> Iterator[PlannedPass]:
    entries = checkpoint.weights("unet").entries
    seconds_of_eval = eval_seconds(checkpoint, device)
    upstream: list[str] = []
    for engine, positions in groups:
        edits = _chosen(spec, positions)
        targets = tuple(sorted(engine.targets(edits, entries)))
        cost = engine.cost(edits, spec, checkpoint)
        key = cache.key(
            {
                "stage": "pass",
                "pass": engine.name,
                "version": engine.version,
                "edits": [spec.document["edits"][position] for position in positions],
                "reads": engine.reads(edits, spec),
                "seed": spec.seed,
                "base": checkpoint.digest,
                "upstream": list(upstream),
                "libraries": library_versions(),
                "device": device.device_class,
            }
        )
        upstream.append(key)
        mining = engine.mining(edits, spec) if spec.preserve.auto else {}
        yield PlannedPass(
            edit_pass=engine,
            edits=positions,
            ids=tuple(edit.id for edit in edits),
            targets=targets,
            parameters=sum(entries[name].parameters for name in targets),
            evals=cost.evals,
            seconds=cost.seconds + cost.evals * seconds_of_eval,
            memory_bytes=cost.memory_bytes,
            key=key,
            cached=cache.has(key),
            mining=mining,
            neighbours={
                id: known_neighbours(one, checkpoint, cache, device.device_class) if one else ()
                for id, one in mining.items()
            },
        )


def _chosen(spec: EditSpec, positions: Sequence[int]) -> tuple[Edit, ...]:
    return tuple(spec.edits[position] for position in positions)


def _planned_gates(spec: EditSpec) -> tuple[GatePlan, ...]:
    """The gates' own plans; refuses a gate that no evaluator could ever decide. Loads labels, no model."""
    from compiler.evaluators import open_evaluators
    from compiler.gates import check_evaluators, plan_gates

    if not spec.gates:
        return ()
    plans = tuple(plan_gates(spec))
    check_evaluators(spec, open_evaluators(spec, spec.folder))
    return plans
