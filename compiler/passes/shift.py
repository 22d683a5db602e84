"""Shift along self-discovered directions (Li et al. 2024): vectors added to biases and to gated text values.

Directions are learned from prompts (compiler.discovery), read from a direction file, or imported from a
published one; their weighted sum times the strength is the change. It depends on no other edit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.carrying import carrying, opening_words
from compiler.directions import direction_header, misfit
from compiler.discovery import direction_mining, discover, discovery_evals, prompts_read
from compiler.keep import keep_requests
from compiler.mining import Mining, edited_words
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.published_directions import concepts_of
from compiler.rescaling import mid_side, rescaled, rescaling_evals
from compiler.sites import mid_output
from compiler.unet import training_memory, unsuited
from editspec import Shift
from editspec.errors import InputError, listed, quoted

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.directions import Found
    from compiler.safetensors_file import TensorEntry
    from editspec import Direction, Edit, EditSpec

LOADING_SECONDS = 2.0  # late imports and building the U-Net


class ShiftDirections(EditPass):
    """One shift edit: its directions, summed with their weights, times its strength."""

    name = "shift/direction"
    version = 3
    order = 20  # learned on the base alone; before prompts are taught what the shifted model must still do
    merges = False

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Shift)

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        edit = _only(edits)
        pointer = spec.pointer(edit)
        found: list[tuple[str, str]] = []
        if reason := unsuited(checkpoint.config("unet")):
            found.append((f"{pointer}/edit", f"'shift' cannot edit this base: {reason}"))
        if edit.gated and checkpoint.family == "sdxl":
            what = "a shift can be gated by the text in Stable Diffusion 1 and 2 only"
            found.append((f"{pointer}/gated", what))
        if not carrying(edit, checkpoint.weights("unet").entries):
            what = f"this base has nothing that carries a shift at '{edit.sites}'"
            found.append((f"{pointer}/sites", what))
        if edit.overshoot != 1 and all(direction.file for direction in edit.directions):
            what = "a direction from a file is not learned, so nothing overshoots; change 'strength' instead"
            found.append((f"{pointer}/overshoot", what))
        found += [(f"{pointer}/words", what) for what in _unopened(edit, spec)]
        for place, direction in _read_from_files(edit, pointer):
            try:
                found += [(place, problem) for problem in _file_problems(edit, direction, spec, checkpoint)]
            except InputError as error:
                found.append((place, f"{error.where}: {error.what}"))
        return found

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        edit = _only(edits)
        files = [_file(direction, spec) for direction in edit.directions if direction.file]
        files += [path.parent / "concept_dict.json" for path in files if path.suffix == ".pth"]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        return {**super().reads(edits, spec), "edited": edited_words(spec), "files": digests}

    def mining(self, edits: Sequence[Edit], spec: EditSpec) -> Mapping[str, Mining | None]:
        edit = _only(edits)
        several = len(edit.directions) > 1
        return {
            f"{edit.id}/{place}" if several else edit.id: direction_mining(edit, direction, spec)
            for place, direction in enumerate(edit.directions)
            if direction.file is None
        }

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        edit = _only(edits)
        names = set(carrying(edit, entries)) if any(d.prompt for d in edit.directions) else set()
        if any(d.file and d.file.endswith(".pth") for d in edit.directions):
            names |= {name for name in (mid_output(entries),) if name}
        if any(d.file and not d.file.endswith(".pth") for d in edit.directions):
            names |= {name for name in entries if name.endswith((".bias", ".attn2.to_v.weight"))}
        return tuple(sorted(names))

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        edit = _only(edits)
        evals = sum(_evals(edit, direction, spec, checkpoint) for direction in edit.directions)
        entries, config = checkpoint.weights("unet").entries, checkpoint.config("unet")
        vectors = [name for name in carrying(edit, entries) if name.endswith(".bias")]
        return PassCost(evals, LOADING_SECONDS, training_memory(entries, config, vectors))

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        from compiler.deltas import added

        edit = _only(edits)
        total: dict[str, Any] = {}
        records = []
        for direction in edit.directions:
            found = found_direction(edit, direction, context)
            total = added(total, found.deltas(edit.strength * direction.weight))
            records.append({"weight": direction.weight, **found.facts})
        evals = sum(int(record.get("evals", 0)) for record in records)
        return PassResult(total, {"evals": evals, "strength": edit.strength, "directions": records})


def found_direction(edit: Shift, direction: Direction, context: PassContext) -> Found:
    """A direction of `edit` at strength 1 and weight 1, wherever it comes from."""
    from compiler.directions import load_direction

    if direction.file is None:
        return discover(edit, direction, context)
    path = _file(direction, context.spec)
    if path.suffix == ".pth":
        return rescaled(path, edit, direction, context)
    return load_direction(path)


def _only(edits: Sequence[Edit]) -> Shift:
    (edit,) = edits
    assert isinstance(edit, Shift)
    return edit


def _file(direction: Direction, spec: EditSpec) -> Path:
    assert direction.file is not None
    return spec.folder / direction.file


def _read_from_files(edit: Shift, pointer: str) -> list[tuple[str, Direction]]:
    places = [f"{pointer}/direction/{number}" for number in range(len(edit.directions))]
    if len(edit.directions) == 1:
        places = [f"{pointer}/direction"]
    return [(place, d) for place, d in zip(places, edit.directions, strict=True) if d.file]


def _file_problems(edit: Shift, direction: Direction, spec: EditSpec, checkpoint: Checkpoint) -> list[str]:
    """Why a direction's file cannot be used with this base; loads no tensor."""
    path = _file(direction, spec)
    if not path.is_file():
        return [f"there is no file {quoted(str(direction.file))} beside the spec"]
    if path.suffix != ".pth":
        entries, facts = direction_header(path)
        if facts.get("gated") and checkpoint.family == "sdxl":
            return ["a gated direction is for Stable Diffusion 1 and 2"]
        problem = misfit(entries, checkpoint.weights("unet").entries)
        return [problem] if problem else []
    names = concepts_of(path)
    problems = []
    if direction.concept not in names and not (direction.concept is None and len(names) == 1):
        problems.append(f"say which 'concept' of this file: {listed(sorted(names))}")
    if not edit.prompts:
        problems.append("a published vector is rescaled on prompts: name some in the edit's 'prompts'")
    if mid_side(checkpoint) is None:
        problems.append("this base has no mid block that a published vector fits")
    return problems


def _unopened(edit: Shift, spec: EditSpec) -> list[str]:
    """Why 'words' is nothing for a direction of the edit; none where it is, or is not asked for."""
    if not edit.words:
        return []
    if edit.gated:
        return ["a gated shift reads every word alike: leave out 'gated' or 'words'"]
    learned = [direction for direction in edit.directions if direction.file is None]
    if not learned:
        return ["a direction from a file is carried as it was learned: leave 'words' out"]
    kept = [text for request in keep_requests(edit, spec, neighbours=()) for text in request.prompts]
    return [
        f"no prompt that it is learned on has a word of {quoted(direction.negative_prompt or '')}, or what "
        "is preserved has it too: give a 'negative_prompt', no 'base_prompt', and 'prompts' that name it"
        for direction in learned
        if not opening_words(direction, prompts_read(edit, direction), kept)
    ]


def _evals(edit: Shift, direction: Direction, spec: EditSpec, checkpoint: Checkpoint) -> int:
    if direction.file is None:
        return discovery_evals(edit, direction, spec, checkpoint)
    return rescaling_evals(edit, spec.seed, checkpoint) if direction.file.endswith(".pth") else 0
