"""Which embeddings a closed-form edit moves, where to, and which ones must stay: the columns of the solve.

From the concept's first token on every position of a prompt knows the concept: its own tokens, the words
after it, EOS, and the padding, which cross-attention reads too. Each is sent to the position of the same role
in the prompt that holds the anchor in the concept's place. What stands before the concept cannot know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
        """The template filled with `name`, "" leaving the concept out: "a photo of a {}" -> "a photo of a".

        A template without {} is a whole prompt that holds the name. Raises InputError where the prompt does
        not hold it or has more tokens than the window.
        """
        name = " ".join(name.split())
        before = " ".join(template.split()).partition("{}")[0]
        prompt = " ".join(fill(template, name).split())
        length = text.token_count(prompt)
        if length > text.window:
            what = f"has {length} tokens, the text encoder's window is {text.window}"
            raise InputError(f"prompt {prompt!r}", what, "shorten the concept, the anchor or the template")
        if not name:
            start = text.token_count(before) - 1
            return cls(prompt, start, start, length)
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
    """Columns of one solve: `edited` and their `anchors` (d, k) with `weights` (k,), `preserved` (d, m)."""

    edited: Tensor
    anchors: Tensor
    weights: Tensor
    preserved: Tensor
    exact_padding: bool


class ColumnSet:
    """Gathers the columns of all closed-form edits of a spec; equal contexts are one column.

    A state depends on the tokens up to its position only, so these identify it: BOS, or "a photo of a", is
    one column however many prompts begin with it.
    """

    def __init__(self, text: TextEncoder) -> None:
        self.text = text
        self._ids: dict[str, list[int]] = {}
        self._edited: dict[tuple[tuple[int, ...], ...], tuple[Place, Place, float, float]] = {}
        self._preserved: dict[tuple[int, ...], Place] = {}
        for position in range(text.window):  # the whole unconditional branch: what all guidance starts from
            self._preserve("", position)

    def move(
        self, template: str, concept: str, anchor: str, *, weight: float = 1.0, scale: float = 1.0
    ) -> None:
        """Send the concept in this template to the anchor, `scale` of the way; the anchor is preserved."""
        source = Subject.of(self.text, template, concept)
        goal = Subject.of(self.text, template if "{}" in template else "{}", anchor)
        positions = [*range(source.start, source.length), *stops(source.length, self.text.window)]
        places = align(source, goal, positions, self.text.window)
        for position, place in zip(positions, places, strict=True):
            key = (self._key(source.prompt, position), self._key(*place))
            if key[0] != key[1]:
                self._edited.setdefault(key, ((source.prompt, position), place, weight, scale))
        for position in range(source.start):
            self._preserve(source.prompt, position)
        self.preserve(goal.prompt)

    def preserve(self, prompt: str) -> None:
        """Keep what every position of this prompt says."""
        length = len(self._tokens(prompt))
        for position in (*range(length), *stops(length, self.text.window)):
            self._preserve(prompt, position)

    def build(self) -> Columns:
        """Encode everything that was gathered. What an edit moves is no longer preserved."""
        moved = {key[0] for key in self._edited}
        kept = [place for key, place in self._preserved.items() if key not in moved]
        sources = [entry[0] for entry in self._edited.values()]
        goals = [entry[1] for entry in self._edited.values()]
        states, exact = self._encode([*sources, *goals, *kept])
        edited, anchors, preserved = torch.split(states, [len(sources), len(goals), len(kept)])
        weights = edited.new_tensor([entry[2] for entry in self._edited.values()])
        scales = edited.new_tensor([entry[3] for entry in self._edited.values()])
        anchors = edited + scales[:, None] * (anchors - edited)
        return Columns(edited.T, anchors.T, weights, preserved.T, exact)

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

    def _preserve(self, prompt: str, position: int) -> None:
        self._preserved.setdefault(self._key(prompt, position), (prompt, position))

    def _tokens(self, prompt: str) -> list[int]:
        """Real token ids of the first tokenizer; both of SDXL's cut text alike."""
        if prompt not in self._ids:
            self._ids[prompt] = self.text.token_ids([prompt])[0]
        return self._ids[prompt]

    def _key(self, prompt: str, position: int) -> tuple[int, ...]:
        """What decides the state at this place: the tokens up to it, padding as -1."""
        ids = self._tokens(prompt)[: position + 1]
        return (*ids, *(-1 for _ in range(position + 1 - len(ids))))
