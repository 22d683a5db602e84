"""An edit alone, as one safetensors file of fp32 changes by U-Net tensor name: new value minus old."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler import deltas
from editspec.errors import GateFailed
from exporters.changes import changes_of, reproduction
from exporters.destination import export_file, record

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint

_HEADER_BYTES = 2**20


def export_delta(
    edited: Checkpoint, out: Path, *, base: Checkpoint | None = None, force: bool = False
) -> dict[str, Any]:
    """Write the changes of `edited` to the file `out`; returns its record, which lies beside it.

    With `base`, base + change is compared with `edited` bit by bit. `GateFailed`, and nothing is written,
    where recorded changes do not give what the artifact holds; where they were computed as a difference,
    the record counts the elements that no fp32 change can give exactly.
    """
    changes = changes_of(edited, base)
    check = None if base is None else reproduction(changes, base)
    if check is not None and not check.exact and changes.origin == "provenance":
        raise GateFailed(
            f"{check.wrong_elements:,} elements of the artifact are not base + recorded change: "
            "another base, or an artifact that was changed after its build"
        )
    needed = 4 * changes.parameters + _HEADER_BYTES
    with export_file(out, needed_bytes=needed, force=force) as made:
        deltas.save(changes, made.part)
        made.facts = record(
            "delta",
            edited,
            {
                "origin": changes.origin,
                "base": changes.base_record(),
                "tensors": len(changes),
                "parameters": changes.parameters,
                "reproduces": None if check is None else check.as_dict(),
            },
        )
    return made.facts
