"""Is a checkpoint exactly its base plus the published change? Linking the two again shows it.

The one check that only a compiler of edits can offer: whatever the recorded change does not touch is the
base's, byte for byte, and what it touches is the base's value plus the change, rounded once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.artifact import DELTAS, LOCK, Artifact
from compiler.base import open_base
from compiler.safetensors_file import TensorEntry, read_header, read_tensor
from editspec import PathBase
from exporters.inventory import Inventory

if TYPE_CHECKING:
    from torch import Tensor


class _Stored(Mapping[str, "Tensor"]):
    """The recorded change, read tensor by tensor: memory does not grow with it."""

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> Tensor:
        return read_tensor(self.entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def relinked(artifact: Artifact, base: Path, digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """File and what is wrong with it, for each that is not `base` (a folder, or "miniature") plus the change.

    The artifact's own records must agree already; `digests` are its files' sha256. Needs room for the
    checkpoint in the system's temporary folder. `InputError` where there is no checkpoint at `base`.
    """
    from compiler.link import LinkError, link

    recorded = artifact.read(LOCK)["base"]
    checkpoint = open_base(PathBase(path=str(base), variant=recorded.get("variant")), Path.cwd())
    if checkpoint.digest != recorded["digest"]:
        yield LOCK, f"pins another base than {base}: its files are not those that this was made from"
        return
    with tempfile.TemporaryDirectory(prefix="excise-relink-") as place:
        out = Path(place) / "checkpoint"
        try:
            link(checkpoint, _Stored(read_header(artifact.path(DELTAS))[0]), out)
        except LinkError as error:
            yield DELTAS, f"does not fit the base: {error}"
            return
        for name, digest in Inventory.of(out).digests().items():
            if digests.get(name) != digest:
                yield name, "is not the base's with the recorded change, and nothing else"
