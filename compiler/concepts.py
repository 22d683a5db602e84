"""Neighbours of a concept: words of the tokenizer's own vocabulary that the text encoder places next to it.

They are what an edit harms first (METHODS, section 2: erasing "car" hurts "tank"), so `preserve.auto` mines
them and puts them into the keep columns or the keep term.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cached_property

import torch
from torch import Tensor

from compiler.text import TextEncoder

TEMPLATE = "a {}"
#: Byte-pair merges come in order of frequency: first words, at last mostly names and noise.
_WORDS = 20_000
SYNONYM = 0.9  # centred cosine above which two words are one to the encoder
_SAMPLE = 256
#: Standard deviation of the normal draws that CLIP's published code starts word embeddings from.
_INITIAL_SPREAD = 0.02
_SHORTLIST = 128  # words that go through the encoder for each concept, at least; eight for each one wanted
_WORD = re.compile(r"[a-z]*[aeiouy][a-z]*")
#: Words that carry no concept of their own.
_FUNCTION_WORDS = frozenset(
    """
    about above after all also among and any are because been before behind being below but can could
    did does don down each for from had has have her here him his how into its just like more most near
    not off one only other our out over own per she should some such than that the their them then there
    these they this those too two under until very was were what when where which while who why will
    with without would you your
    """.split()  # noqa: SIM905 - a list of 80 quoted words reads worse
)


def vocabulary(text: TextEncoder) -> tuple[str, ...]:
    """Whole words that the tokenizer knows as one token, most frequent first."""
    tokens = sorted(text.tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = (token.removesuffix("</w>") for token, _ in tokens if token.endswith("</w>"))
    found = [
        word for word in words if len(word) > 2 and _WORD.fullmatch(word) and word not in _FUNCTION_WORDS
    ]
    return tuple(found[:_WORDS])


def untrained(text: TextEncoder, words: Sequence[str]) -> frozenset[str]:
    """Those of `words`, each one token, whose input embedding never grew beyond its random start.

    A tokenizer holds pieces of words ("ccessful") and words that no caption had; training never met them, so
    nothing is drawn for them. Such tokens keep embeddings of the initial size (Land & Bartolo 2024, Fishing
    for Magikarp: the norm tells under-trained tokens). Where most words are that small, training has shrunk
    all of them: then the size tells nothing, and none is left out.
    """
    if not words:
        return frozenset()
    table = text.parts[-1].input_embeddings.float()
    ids = text.tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in words])
    width = table.shape[1]
    # The norm of `width` normal draws: its mean, and three standard deviations above.
    bound = _INITIAL_SPREAD * (width**0.5 + 3 * 0.5**0.5)
    small = (table[ids].norm(dim=1) <= bound).tolist()
    if sum(small) > len(small) / 2:
        return frozenset()
    return frozenset(word for word, is_small in zip(words, small, strict=True) if is_small)


class Neighbourhood:
    """Finds neighbours among `words`, by default the tokenizer's. An answer depends on its question alone.

    Cosines are taken after the mean over words is subtracted: raw final embeddings share a few large
    components, and all pairs of words come out above 0.95.
    """

    def __init__(self, text: TextEncoder, words: Sequence[str] | None = None) -> None:
        self.text = text
        self.words = tuple(words) if words is not None else vocabulary(text)

    @cached_property
    def sample(self) -> tuple[str, ...]:
        """At most 256 words, most of them frequent: every one of the first 128, then every n-th."""
        rest = self.words[_SAMPLE // 2 :]
        step = max(1, -(-len(rest) // (_SAMPLE // 2)))
        return (*self.words[: _SAMPLE // 2], *rest[::step])

    def neighbours(self, concept: str, k: int, exclude: Collection[str] = ()) -> list[tuple[str, float]]:
        """The `k` words next to `concept`, nearest first, with the cosine of their final text embeddings.

        Both stand in a neutral template ("a {}"). Leaves out the concept, everything in `exclude` (aliases,
        whatever else the spec erases), their plurals, and words nearer than `SYNONYM`: to preserve "cars"
        or what the encoder takes for the same thing would preserve "car". Nor is a word a neighbour that
        training never met (`untrained`).
        """
        banned = {form for name in (concept, *exclude) for form in _forms(name)}
        words = [word for word in self.words if word not in banned and word not in self._untrained]
        if k <= 0 or not words:
            return []
        shortlist = self._shortlist(concept, words, max(_SHORTLIST, 8 * k))
        ranked = sorted(self.cosines(concept, shortlist), key=lambda pair: (-pair[1], pair[0]))
        return [pair for pair in ranked if pair[1] < SYNONYM][:k]

    def unlike(self, names: Collection[str]) -> tuple[str, ...]:
        """The words of `sample` that mean none of `names`: neither these and their plurals, nor synonyms."""
        banned = {form for name in names for form in _forms(name)}
        for name in names:
            banned |= {word for word, cosine in self.cosines(name, self.sample) if cosine >= SYNONYM}
        return tuple(word for word in self.sample if word not in banned)

    def cosines(self, concept: str, words: Sequence[str]) -> list[tuple[str, float]]:
        """Each of `words` with the cosine of its final text embedding to that of `concept`, centred."""
        known = self._sample_finals
        finals = known | self._encoded([name for name in (concept, *words) if name not in known])
        rows = torch.stack([finals[word] for word in words]) - self._centre
        cosines = torch.nn.functional.cosine_similarity(rows, (finals[concept] - self._centre)[None])
        return list(zip(words, cosines.tolist(), strict=True))

    @cached_property
    def _untrained(self) -> frozenset[str]:
        whole = [word for word in self.words if f"{word}</w>" in self.text.tokenizer.get_vocab()]
        return untrained(self.text, whole)

    @cached_property
    def _sample_finals(self) -> dict[str, Tensor]:
        return self._encoded(self.sample)

    @cached_property
    def _centre(self) -> Tensor:
        return torch.stack([self._sample_finals[word] for word in self.sample]).mean(0)

    def _shortlist(self, concept: str, words: Sequence[str], size: int) -> list[str]:
        """The words whose input embeddings are nearest: encoding 20,000 words would take minutes."""
        if len(words) <= size:
            return list(words)
        table = self.text.parts[-1].input_embeddings
        table = torch.nn.functional.normalize(table - table.mean(0), dim=-1)
        ids = self.text.tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in words])
        own = self.text.token_ids([concept])[0][1:-1]
        nearness = (table[ids] @ table[own].T).amax(
            1
        )  # to any of its tokens: "grumpy cat" has cats beside it
        return [words[index] for index in nearness.topk(size).indices.tolist()]

    def _encoded(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Final embeddings. The last bits depend on the batch, so a batch is never shaped by earlier ones."""
        new = tuple(dict.fromkeys(names))
        rows = self.text.encode_tokens([TEMPLATE.format(name) for name in new])
        return {name: row[-1] for name, row in zip(new, rows, strict=True)}


def neighbours(
    text: TextEncoder, concept: str, k: int, exclude: Collection[str] = (), words: Sequence[str] | None = None
) -> list[tuple[str, float]]:
    """`Neighbourhood.neighbours` for a single concept."""
    return Neighbourhood(text, words).neighbours(concept, k, exclude)


def _forms(name: str) -> set[str]:
    """A name, its plural and its singular, in the tokenizer's lower case."""
    name = " ".join(name.lower().split())
    return {name, f"{name}s", f"{name}es", name.removesuffix("s"), name.removesuffix("es")}
