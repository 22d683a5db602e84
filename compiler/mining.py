"""Neighbours that `preserve.auto` keeps: asked for in a plan, mined once by the text encoder, then cached.

What is asked for is known without a tensor, and so is the address of the answer in the stage cache: a plan
shows neighbours that were mined before, by a build or by `excise plan --neighbours`, in no time.

Nothing is mined for an edit of kind "content". The words nearest to sensitive content are those that imply it
("volcano" and "riot" beside "flame"); to keep what they draw would keep what is to go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from compiler.cache import StageCache
from compiler.device import choose
from compiler.versions import library_versions
from editspec import Ablate, Erase

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.concepts import Neighbourhood
    from compiler.device import Device
    from compiler.passes import PassContext
    from editspec import EditSpec

VERSION = 1  # raise it when the same question may give other neighbours
FILE = "neighbours.json"

Neighbours: TypeAlias = Sequence[tuple[str, float]]
"""Words and the centred cosines of their text embeddings, nearest first."""


class MiningEdit(Protocol):
    """The fields that say whether an edit keeps neighbours, and what it keeps by name."""

    @property
    def kind(self) -> str: ...
    @property
    def preserve(self) -> tuple[str, ...]: ...
    @property
    def keep_weight(self) -> float: ...


@dataclass(frozen=True)
class Mining:
    """A question: the `count` words nearest to any of `subjects`, none of them in `exclude` (sorted)."""

    subjects: tuple[str, ...]
    count: int
    exclude: tuple[str, ...]


def edited_words(spec: EditSpec) -> tuple[str, ...]:
    """Every concept and alias that some edit of the spec removes: none of them is a neighbour to keep."""
    found: dict[str, None] = {}
    for edit in spec.edits:
        if isinstance(edit, Erase | Ablate):
            found |= dict.fromkeys((edit.concept, *edit.aliases))
    return tuple(found)


def neighbours_kept(edit: MiningEdit, spec: EditSpec) -> int:
    """How many neighbours an edit keeps: `preserve.auto`, but none of content, nor without a keep term."""
    return spec.preserve.auto if edit.kind != "content" and edit.keep_weight else 0


def mining_of(edit: MiningEdit, subjects: Sequence[str], spec: EditSpec) -> Mining | None:
    """What an edit asks for beside all that the spec edits or preserves by name; None for nothing."""
    count = neighbours_kept(edit, spec)
    if not count or not subjects:
        return None
    known = {*edited_words(spec), *spec.preserve.concepts, *edit.preserve, *subjects}
    return Mining(tuple(subjects), count, tuple(sorted(known)))


def known_neighbours(
    mining: Mining, checkpoint: Checkpoint, cache: StageCache, device_class: str
) -> Neighbours | None:
    """The answer if the cache holds it; reads no tensor."""
    stored = cache.get(_key(mining, checkpoint, device_class))
    return None if stored is None else _read(stored)


def mined(mining: Mining | None, context: PassContext) -> list[tuple[str, float]]:
    """The answer for a build: from the cache, or mined now and stored there."""
    if mining is None:
        return []
    device_class = choose(context.device.type).device_class
    found = known_neighbours(mining, context.checkpoint, context.cache, device_class)
    if found is None:
        found = _mine(mining, context.neighbourhood(), context.checkpoint, context.cache, device_class)
    return list(found)


def mine_all(minings: Sequence[Mining], checkpoint: Checkpoint, cache: StageCache, device: Device) -> None:
    """Mine now and store in the cache; loads torch and the text encoder."""
    from compiler.concepts import Neighbourhood
    from compiler.seeds import reproducible
    from compiler.text import TextEncoder

    with reproducible():
        hood = Neighbourhood(TextEncoder.from_checkpoint(checkpoint, device.open()))
        for mining in minings:
            _mine(mining, hood, checkpoint, cache, device.device_class)


def nearest(mining: Mining, hood: Neighbourhood) -> list[tuple[str, float]]:
    """The answer itself: for several subjects a word counts with its greatest cosine."""
    best: dict[str, float] = {}
    for subject in mining.subjects:
        for word, cosine in hood.neighbours(subject, mining.count, exclude=mining.exclude):
            best[word] = max(cosine, best.get(word, -1.0))
    return sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[: mining.count]


def _mine(
    mining: Mining, hood: Neighbourhood, checkpoint: Checkpoint, cache: StageCache, device_class: str
) -> Neighbours:
    def write(folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(nearest(mining, hood)) + "\n", "utf-8")

    return _read(cache.put(_key(mining, checkpoint, device_class), write))


def _read(folder: Path) -> Neighbours:
    return [(word, cosine) for word, cosine in json.loads((folder / FILE).read_text("utf-8"))]


def _key(mining: Mining, checkpoint: Checkpoint, device_class: str) -> str:
    return StageCache.key(
        {
            "stage": "neighbours",
            "version": VERSION,
            "mining": asdict(mining),
            "base": _text_files(checkpoint),
            "libraries": library_versions(),
            "device": device_class,
        }
    )


def _text_files(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Digests of the files that text embeddings depend on."""
    return {
        path: digest
        for path, digest in checkpoint.digests().items()
        if path.startswith(("text_encoder", "tokenizer"))
    }
