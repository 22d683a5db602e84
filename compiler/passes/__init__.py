"""The edit methods: one file here = one method, found by walking this folder; there is no list to edit.

A pass says which edits it compiles, which weights it may change and what that costs, and returns changes
(deltas). Nothing in this module or at the top of a pass's file imports torch: planning loads no tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.folder_walk import by_name, defined_in

if TYPE_CHECKING:
    import torch

    from compiler.cache import StageCache
    from compiler.checkpoint import Checkpoint
    from compiler.concepts import Neighbourhood
    from compiler.mining import Mining
    from compiler.progress import Progress
    from compiler.safetensors_file import TensorEntry
    from compiler.text import TextEncoder
    from editspec import Edit, EditSpec


#: Why passes run where they do: the least `order` of each stage of a build, and the stage's reason.
STAGES: Mapping[int, str] = MappingProxyType(
    {
        0: "what goes is removed first: later edits build on predictions without it",
        20: "directions act on every prompt, so they are there before prompts are taught",
        30: "guidance is learned on top of what was removed and shifted",
        40: "groups are mixed as all edits before have left them",
        50: "phrases use other edits, and prompts without them are kept as these have left them",
        80: "closed form is cheap and comes last: to change it rebuilds nothing costly",
    }
)


@dataclass(frozen=True)
class PassCost:
    """What a run is expected to take.

    `evals`: one sample through the U-Net once; a backward pass counts 2. The planner prices them for the
    device at hand. `seconds`: work beside the U-Net, on two CPU cores. `memory_bytes`: peak.
    """

    evals: int
    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class PassResult:
    """What a run gave: fp32 changes by U-Net tensor name, and JSON facts for provenance/edits.json.

    `record` must be reproducible: measured values, counts, mined words; never times, paths or host names.
    """

    deltas: Mapping[str, torch.Tensor]
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PassContext:
    """Everything a pass may read. `upstream` are the fp32 changes of all passes before this one."""

    spec: EditSpec
    checkpoint: Checkpoint
    upstream: Mapping[str, torch.Tensor]
    seed: int
    device: torch.device
    cache: StageCache
    progress: Progress
    _shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def weight(self, name: str) -> torch.Tensor:
        """The U-Net tensor as this pass finds it: fp32, on the CPU, base plus upstream changes."""
        import torch

        weight = self.checkpoint.weights("unet").read(name).to(torch.float32)
        change = self.upstream.get(name)
        return weight if change is None else weight + change

    def text(self) -> TextEncoder:
        """The base's text encoder(s) on `device`, loaded once for all passes of a build."""
        from compiler.text import TextEncoder

        if "text" not in self._shared:
            self._shared["text"] = TextEncoder.from_checkpoint(self.checkpoint, self.device)
        text: TextEncoder = self._shared["text"]
        return text

    def neighbourhood(self) -> Neighbourhood:
        """Who finds the base's neighbours of a concept, made once for all passes of a build."""
        from compiler.concepts import Neighbourhood

        if "neighbourhood" not in self._shared:
            self._shared["neighbourhood"] = Neighbourhood(self.text())
        hood: Neighbourhood = self._shared["neighbourhood"]
        return hood


class EditPass(ABC):
    """One edit method. The pipeline checks what it declares: targets, shapes, finite values."""

    name: ClassVar[str]
    """`<edit kind>/<method>`, as in "erase/esd"."""
    version: ClassVar[int]
    """Raise it whenever the same input may give another result: it is part of every cache key."""
    order: ClassVar[int]
    """Lower runs earlier; `STAGES` says which stage it falls into and why that runs there."""
    merges: ClassVar[bool]
    """True: all its edits of a spec in one run. False: one run for each edit, or group (`together`)."""

    @property
    def reason(self) -> str:
        """Why it runs where it does."""
        return STAGES[max(stage for stage in STAGES if stage <= self.order)]

    @abstractmethod
    def accepts(self, edit: Edit) -> bool:
        """Whether this pass compiles `edit`."""

    def together(self, edit: Edit) -> str | None:
        """For a pass that does not merge: edits with the same word share a run; None has one of its own."""
        return None

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        """What is wrong with these edits on this checkpoint: (JSON pointer, message) pairs. No tensors."""
        return []

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        """The parts of the spec, as JSON, that a run depends on beside its edits; part of its cache key."""
        return {"preserve": spec.document.get("preserve")}

    def mining(self, edits: Sequence[Edit], spec: EditSpec) -> Mapping[str, Mining | None]:
        """Which neighbours a run mines and keeps, by edit id: what `excise plan` shows. No tensors.

        None for an edit that mines none though the spec says `preserve.auto`.
        """
        return {}

    @abstractmethod
    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        """Names of the U-Net tensors that a run may change; `entries` are all of the U-Net's."""

    @abstractmethod
    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        """What a run is expected to take. No tensors."""

    @abstractmethod
    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        """Compute the changes. Deterministic in everything that its cache key names."""


def made_before(edit: Edit, spec: EditSpec) -> tuple[Edit, ...]:
    """The spec's edits that passes compile before the one that compiles `edit`."""

    def turn(place: int, other: Edit) -> tuple[int, int]:
        return next(number for number, engine in enumerate(discover()) if engine.accepts(other)), place

    turns = {other.id: turn(place, other) for place, other in enumerate(spec.edits)}
    return tuple(other for other in spec.edits if turns[other.id] < turns[edit.id])


@cache
def discover() -> tuple[EditPass, ...]:
    """Every pass in this folder, in running order. A file that cannot be imported breaks the program."""
    found: list[EditPass] = []
    for module, classes in defined_in(__name__, __path__, EditPass):  # type: ignore[type-abstract]
        if not classes:
            raise TypeError(f"{module} defines no EditPass; a file in this folder is one edit method")
        found += [one() for one in classes]
    every = by_name(((edit_pass.name, edit_pass) for edit_pass in found), "passes").values()
    return tuple(sorted(every, key=lambda edit_pass: (edit_pass.order, edit_pass.name)))
