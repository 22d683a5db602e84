"""Prompts to text embeddings, exactly as the stock diffusers pipelines make them, without loading a U-Net.

A CLIP text encoder is causal: the state of a token depends on the tokens before it only. So whoever needs the
first few positions of a padded prompt pays for these alone, and batches are sorted by length.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.clip import Clip, load
from compiler.json_file import read_object
from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint

_TOKENS_PER_BATCH = 2048  # bounds the activations: 50 MB in the widest layer of SDXL's larger encoder
_CACHE_BYTES = 128 << 20


class TextEncoder:
    """Text encoder(s) and tokenizer(s) of one checkpoint, frozen, in one device and dtype.

    `window` is the length of a padded prompt in tokens, `width` that of an embedding: of both encoders
    together for SDXL.
    """

    def __init__(self, parts: Sequence[Clip], device: torch.device, zero_unconditional: bool) -> None:
        self.parts = tuple(parts)
        self.device = device
        self.tokenizer = parts[0].tokenizer
        self.window: int = self.tokenizer.model_max_length
        self.width = sum(part.width for part in parts)
        self._zero_unconditional = zero_unconditional
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TextEncoder:
        """Load `text_encoder` (and `text_encoder_2`) with their tokenizers from a diffusers folder.

        Raises InputError where weights are missing or do not fit the tokenizer.
        """
        device = torch.device(device)
        suffixes = [suffix for suffix in ("", "_2") if f"text_encoder{suffix}" in checkpoint.components]
        parts = [load(checkpoint, suffix, device, dtype) for suffix in suffixes]
        windows = [part.tokenizer.model_max_length for part in parts]
        if len(set(windows)) > 1:
            raise InputError(
                str(checkpoint.root),
                f"has tokenizers with windows of {windows[0]} and {windows[1]} tokens",
                "give tokenizer and tokenizer_2 the same model_max_length",
            )
        zero = False
        if checkpoint.family == "sdxl":
            index = read_object(checkpoint.root / "model_index.json")
            zero = bool(index.get("force_zeros_for_empty_prompt", True))
        return cls(parts, device, zero)

    # What the U-Net reads.

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings padded to the window as the stock pipeline does, (n, window, width).

        Cached in memory. Each goes through the encoder alone: in a batch the last bits of a row may depend on
        its neighbours, and a build must not depend on what else was encoded.
        """
        if not prompts:
            return torch.empty(0, self.window, self.width, device=self.device)
        return torch.stack([self._one(prompt) for prompt in prompts])

    def encode_tokens(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings of the real tokens alone, BOS and EOS included, each (real tokens, width)."""
        return self.encode_prefix(prompts, [len(ids) for ids in self.token_ids(prompts)])

    def encode_prefix(self, prompts: Sequence[str], lengths: Sequence[int]) -> list[Tensor]:
        """The first `lengths[i]` positions of each padded prompt embedding, each (length, width).

        Costs only these positions: what follows cannot reach them.
        """
        wanted = [(prompt, min(length, self.window)) for prompt, length in zip(prompts, lengths, strict=True)]
        found: dict[tuple[str, int], Tensor] = {}
        for batch in _batches(sorted(set(wanted), key=lambda key: (key[1], key[0]))):
            length = batch[-1][1]
            states = []
            for part in self.parts:
                ids, mask = part.padded([prompt for prompt, _ in batch])
                states.append(part.states(ids[:, :length], None if mask is None else mask[:, :length]))
            rows = torch.cat(states, dim=-1)
            found |= {key: row[: key[1]] for key, row in zip(batch, rows, strict=True)}
        return [found[key] for key in wanted]

    def unconditional(self) -> Tensor:
        """The embedding of the unconditional branch when no negative prompt is given, (1, window, width).

        SDXL checkpoints with `force_zeros_for_empty_prompt` use zeros, all others the empty prompt.
        """
        empty = self.encode([""])
        return torch.zeros_like(empty) if self._zero_unconditional else empty

    def encode_pooled(self, prompts: Sequence[str]) -> Tensor | None:
        """SDXL's pooled prompt embeddings, (n, projection width); None for families that read none."""
        part = self.parts[-1]
        return torch.cat([part.pooled(prompt) for prompt in prompts]) if part.projected else None

    # Tokens.

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of the real tokens of each prompt, BOS and EOS included, cut at the window as in sampling."""
        if not prompts:
            return []
        encoded = self.tokenizer(list(prompts), truncation=True, max_length=self.window)
        return [list(ids) for ids in encoded.input_ids]

    def token_count(self, prompt: str) -> int:
        """Number of tokens with BOS and EOS before any cut; sampling drops what is beyond `window`."""
        return len(self.tokenizer(prompt, verbose=False).input_ids)

    def subject_span(self, prompt: str, concept: str) -> tuple[int, int]:
        """Positions [start, stop) of the concept's tokens in the prompt, BOS being position 0.

        The last occurrence counts: "a picture of a picture" speaks of a picture. Raises InputError where the
        prompt does not hold the concept.
        """
        words = r"\s+".join(re.escape(word) for word in concept.split())
        matches = list(re.finditer(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE)) if words else []
        if not matches:
            raise InputError(f"prompt {prompt!r}", f"does not contain the concept {concept!r}")
        return self.character_span(prompt, *matches[-1].span())

    def character_span(self, prompt: str, start: int, stop: int) -> tuple[int, int]:
        """Positions [first, last) of the tokens that hold the characters [start, stop) of the prompt."""
        encoded = self.tokenizer(prompt, return_offsets_mapping=True, truncation=True, max_length=self.window)
        hit = [
            position
            for position, (first, last) in enumerate(encoded.offset_mapping)
            if max(first, start) < min(last, stop)
        ]
        if not hit:
            what = f"has no token for {prompt[start:stop]!r} within the window of {self.window} tokens"
            raise InputError(f"prompt {prompt!r}", what, "shorten the prompt or check the spelling")
        return hit[0], hit[-1] + 1

    # Inside.

    def _one(self, prompt: str) -> Tensor:
        if prompt not in self._cache:
            self._cache[prompt] = self.encode_prefix([prompt], [self.window])[0]
            while len(self._cache) > 1 and len(self._cache) * self._cache[prompt].nbytes > _CACHE_BYTES:
                self._cache.popitem(last=False)
        return self._cache[prompt]


def _batches(keys: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Cut keys, sorted by length, into runs whose padded size stays within the token budget."""
    batch: list[tuple[str, int]] = []
    for key in keys:
        if batch and key[1] * (len(batch) + 1) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch
