"""Which embeddings a closed-form edit moves, where to, and which ones must stay: the columns of the solve.

From the concept's first token on every position of a prompt knows the concept: its own tokens, the words
after it, EOS, and the padding, which cross-attention reads too. Each is sent to the position of the same role
in the prompt that holds the anchor in the concept's place. What stands before the concept cannot know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compiler.contexts import without
from compiler.tail import encode_positions, stops
from compiler.text import TextEncoder
from editspec.errors import InputError
from editspec.templates import fill

Place = tuple[str, int]  # prompt, position


@dataclass(frozen=True)
class Subject:
    """A prompt and where its subject stands, in tokens; start == stop: it has none."""

    prompt: str
    start: int
    stop: int
    length: int  # real tokens, BOS and EOS included

    @classmethod
    def of(cls, text: TextEncoder, template: str, name: str) -> Subject:
        """The template filled with `name`; "" leaves the concept out, as `contexts.without` does.

        A template without {} is a whole prompt that holds the name. Raises InputError where the prompt does
        not hold it or has more tokens than the window.
        """
        name = " ".join(name.split())
        before = " ".join(template.split()).partition("{}")[0]
        prompt = " ".join(fill(template, name).split()) if name else without(template)
        length = text.token_count(prompt)
        if length > text.window:
            what = f"has {length} tokens, the text encoder's window is {text.window}"
            raise InputError(f"prompt {prompt!r}", what, "shorten the concept, the anchor or the template")
        if not name:
            return cls(prompt, length - 1, length - 1, length)
        if "{}" in template:
            span = text.character_span(prompt, len(before), len(before) + len(name))
        else:
            span = text.subject_span(prompt, name)
        return cls(prompt, *span, length)


def align(concept: Subject, anchor: Subject, positions: Iterable[int], window: int) -> list[Place]:
    """For each position of the concept's prompt from its subject on, the place that it is sent to.

    The last subject token goes to the anchor's last one and those before it in step, surplus ones to the
    anchor's first; words after it and EOS to themselves, padding to the padding at the same place. Without an
    anchor, subject tokens go to the empty prompt's padding at the same place: no word at all.
    """
    places: list[Place] = []
    for position in positions:
        if position < concept.stop:
            behind = concept.stop - position
            if anchor.start == anchor.stop:
                places.append(("", position))
            else:
                places.append((anchor.prompt, max(anchor.start, anchor.stop - behind)))
        elif position < concept.length:
            places.append((anchor.prompt, anchor.length - (concept.length - position)))
        else:
            places.append((anchor.prompt, min(max(position, anchor.length), window - 1)))
    return places


@dataclass(frozen=True)
class Columns:
    """Columns of one solve in float64: `edited` and `anchors` (d, k), `preserved` (d, m), their weights."""

    edited: Tensor
    anchors: Tensor
    weights: Tensor
    preserved: Tensor
    preserved_weights: Tensor
    exact_padding: bool


@dataclass
class _Move:
    source: Place
    goal: Place
    scale: float
    weight: float = 0.0


class ColumnSet:
    """Gathers the columns of all closed-form edits of a spec; equal contexts are one column.

    A state depends on the tokens up to its position only, so these identify it: BOS, or "a photo of a", is
    one column however many prompts begin with it, and its weight is the sum of theirs.
    """

    def __init__(self, text: TextEncoder) -> None:
        self.text = text
        self._ids: dict[str, list[int]] = {}
        self._moves: dict[tuple[tuple[int, ...], ...], _Move] = {}
        self._preserved: dict[tuple[int, ...], tuple[Place, float]] = {}
        for position in range(text.window):  # the whole unconditional branch: what all guidance starts from
            self._preserve("", position, 1.0)

    def move(
        self,
        template: str,
        concept: str,
        anchor: str,
        *,
        weight: float = 1.0,
        scale: float = 1.0,
        spared: int = 0,
    ) -> None:
        """Send the concept in this template to the anchor, `scale` of the way; the anchor is preserved.

        The concept's first `spared` tokens stay: they are a word of their own that does not yet know it.
        """
        source = Subject.of(self.text, template, concept)
        source = replace(source, start=min(source.start + spared, source.stop))
        goal = Subject.of(self.text, template if "{}" in template else "{}", anchor)
        positions = [*range(source.start, source.length), *stops(source.length, self.text.window)]
        places = align(source, goal, positions, self.text.window)
        for position, place in zip(positions, places, strict=True):
            key = (self._key(source.prompt, position), self._key(*place))
            if key[0] != key[1]:
                found = self._moves.setdefault(key, _Move((source.prompt, position), place, scale))
                found.weight += weight
        for position in range(source.start):
            self._preserve(source.prompt, position, weight)
        self.preserve(goal.prompt, weight=weight)

    def preserve(self, prompt: str, *, weight: float = 1.0) -> None:
        """Keep what every position of this prompt says."""
        prompt = " ".join(prompt.split())
        length = len(self._tokens(prompt))
        for position in (*range(length), *stops(length, self.text.window)):
            self._preserve(prompt, position, weight)

    def build(self) -> Columns:
        """Encode everything that was gathered. What an edit moves is no longer preserved."""
        moved = {key[0] for key in self._moves}
        moves = list(self._moves.values())
        kept = [entry for key, entry in self._preserved.items() if key not in moved]
        places = [
            *(move.source for move in moves),
            *(move.goal for move in moves),
            *(place for place, _ in kept),
        ]
        states, exact = self._encode(places)
        edited, anchors, preserved = torch.split(states, [len(moves), len(moves), len(kept)])
        scales = edited.new_tensor([move.scale for move in moves])
        anchors = edited + scales[:, None] * (anchors - edited)
        weights = edited.new_tensor([move.weight for move in moves])
        preserved_weights = edited.new_tensor([weight for _, weight in kept])
        return Columns(edited.T, anchors.T, weights, preserved.T, preserved_weights, exact)

    def _encode(self, places: Sequence[Place]) -> tuple[Tensor, bool]:
        """Embeddings of the places, (n, width) float64, and whether those of padding are exact."""
        wanted: dict[str, set[int]] = {}
        for prompt, position in places:
            if prompt:
                wanted.setdefault(prompt, set()).add(position)
        prompts = sorted(wanted)
        positions = [sorted(wanted[prompt]) for prompt in prompts]
        rows, exact = encode_positions(self.text, prompts, positions)
        found = {
            (prompt, position): row
            for prompt, at, states in zip(prompts, positions, rows, strict=True)
            for position, row in zip(at, states, strict=True)
        }
        empty = self.text.encode([""])[0]
        return torch.stack(
            [found[place] if place[0] else empty[place[1]] for place in places]
        ).double(), exact

    def _preserve(self, prompt: str, position: int, weight: float) -> None:
        key = self._key(prompt, position)
        place, before = self._preserved.get(key, ((prompt, position), 0.0))
        self._preserved[key] = (place, before + weight)

    def _tokens(self, prompt: str) -> list[int]:
        """Real token ids of the first tokenizer; both of SDXL's cut text alike."""
        if prompt not in self._ids:
            self._ids[prompt] = self.text.token_ids([prompt])[0]
        return self._ids[prompt]

    def _key(self, prompt: str, position: int) -> tuple[int, ...]:
        """What decides the state at this place: the tokens up to it, padding as -1."""
        ids = self._tokens(prompt)[: position + 1]
        return (*ids, *(-1 for _ in range(position + 1 - len(ids))))
