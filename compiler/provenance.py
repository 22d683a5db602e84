"""What an artifact says of its own making: spec, lock and change records; no times, hosts or local paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.checkpoint import Checkpoint
    from compiler.link import LinkReport
    from compiler.plan import Plan
    from editspec import EditSpec

LOCK_VERSION = 1
EDITS_VERSION = 1
PLACES = ("path", "model", "file", "image", "prompts_file")  # the keys of a spec that hold local paths
INPUTS = ("file", "image", "prompts_file")  # those of an edit's own inputs


def published_spec(spec: EditSpec) -> dict[str, Any]:
    """The spec with defaults filled in, as published: absolute paths are cut to their last part."""
    published: dict[str, Any] = _without_homes(spec.document)
    return published


def _without_homes(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_homes(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_homes(inner, key) for inner in value]
    return without_home(value) if isinstance(value, str) and key in PLACES else value


def without_home(path: str) -> str:
    """`path` where it is relative; of an absolute one, which tells of a machine, the last part."""
    if path.startswith("~") or PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute():
        return PureWindowsPath(path).name  # splits at both kinds of slashes
    return path


def lock_record(spec: EditSpec, checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """All inputs, pinned: the base's files and the edits' by sha256, licences, libraries, machine class."""
    import torch

    from compiler.licence import licence_record

    licence = licence_record(spec, checkpoint)
    return {
        "lock": LOCK_VERSION,
        "spec": plan.spec_digest,
        "seed": str(spec.seed),  # readers whose numbers are doubles would round a large one
        "base": {
            **published_spec(spec)["base"],
            "family": checkpoint.family,
            "digest": plan.base_digest,
            "files": checkpoint.digests(),
            "license": licence.pop("base"),
        },
        "license": licence,
        "inputs": input_digests(spec),
        "libraries": dict(plan.libraries),
        "device": {"class": plan.device.device_class, "threads": torch.get_num_threads()},
    }


def input_digests(spec: EditSpec) -> dict[str, str]:
    """sha256 of every file that an edit reads (imported vectors, images), by edit and place as published."""
    from compiler.digests import file_digest

    return {
        f"{edit['id']}/{without_home(path)}": file_digest(spec.folder / Path(path).expanduser())
        for edit in spec.document["edits"]
        for path in sorted(_files_of(edit))
    }


def _files_of(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _files_of(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _files_of(inner, key)
    elif isinstance(value, str) and key in INPUTS:
        yield value


def edits_record(
    checkpoint: Checkpoint,
    deltas: Mapping[str, Tensor],
    records: Sequence[Mapping[str, Any]],
    report: LinkReport,
) -> dict[str, Any]:
    """What each pass changed, and what of all changes together the checkpoint's number format kept."""
    total = sum(len(checkpoint.weights(component).entries) for component in checkpoint.weighted)
    return {
        "edits": EDITS_VERSION,
        "passes": list(records),
        "tensors": {"total": total, "changed": len(deltas), "copied": total - len(deltas)},
        "rounding": report.as_dict(),
    }
