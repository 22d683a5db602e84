"""Prompts to text embeddings, exactly as the stock diffusers pipelines make them, without loading a U-Net.

A CLIP text encoder is causal: the state of a token depends on the tokens before it only. So whoever needs the
first few positions of a padded prompt pays for these alone, and batches are sorted by length.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint

_TOKENS_PER_BATCH = 2048  # bounds the activations: 50 MB in the widest layer of SDXL's larger encoder
_CACHE_BYTES = 128 << 20


@dataclass(frozen=True)
class _Component:
    """One tokenizer with its text encoder; SDXL has two of them."""

    tokenizer: Any
    model: Any
    penultimate: bool  # SDXL reads the last but one layer, before the final layer norm
    projected: bool  # has a text projection: the pooled embedding of SDXL comes from here

    def states(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """States that cross-attention reads, (n, tokens, width), for ids (n, tokens)."""
        if self.penultimate:
            output = self.model(ids, attention_mask=mask, output_hidden_states=True)
            states: Tensor = output.hidden_states[-2]
        else:
            states = self.model(ids, attention_mask=mask).last_hidden_state
        return states


class TextEncoder:
    """Text encoder(s) and tokenizer(s) of one checkpoint, frozen, in one device and dtype."""

    def __init__(
        self, components: Sequence[_Component], device: torch.device, zero_unconditional: bool
    ) -> None:
        self._components = tuple(components)
        self.device = device
        self._zero_unconditional = zero_unconditional
        self.tokenizer = components[0].tokenizer
        self.window: int = self.tokenizer.model_max_length
        self.width: int = sum(part.model.config.hidden_size for part in components)
        self._cache: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._cached_bytes = 0

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TextEncoder:
        """Load `text_encoder` (and `text_encoder_2`) with their tokenizers from a diffusers folder.

        Raises InputError where weights are missing or do not fit the tokenizer.
        """
        device = torch.device(device)
        suffixes = [suffix for suffix in ("", "_2") if (checkpoint.root / f"text_encoder{suffix}").is_dir()]
        if not suffixes:
            raise InputError(
                str(checkpoint.root),
                "there is no text encoder",
                "give a complete diffusers text-to-image folder",
            )
        sdxl = checkpoint.family == "sdxl"
        parts = [_load(checkpoint, suffix, sdxl, device, dtype) for suffix in suffixes]
        windows = {part.tokenizer.model_max_length for part in parts}
        if len(windows) > 1:
            raise InputError(
                str(checkpoint.root),
                f"the tokenizers have different windows: {sorted(windows)} tokens",
                "set the same model_max_length in tokenizer and tokenizer_2",
            )
        index = checkpoint.config("model_index") if sdxl else {}
        return cls(parts, device, zero_unconditional=bool(index.get("force_zeros_for_empty_prompt", sdxl)))

    # -- what the U-Net reads -------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings padded to the window as the stock pipeline does, (n, window, width). Cached."""
        return torch.stack(self.encode_prefix(prompts, [self.window] * len(prompts)))

    def encode_tokens(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings of the real tokens alone, BOS and EOS included, each (real tokens, width). Cached."""
        return self.encode_prefix(prompts, [len(ids) for ids in self.token_ids(prompts)])

    def encode_prefix(self, prompts: Sequence[str], lengths: Sequence[int]) -> list[Tensor]:
        """The first `lengths[i]` positions of each padded prompt embedding, each (length, width). Cached.

        Costs only these positions: what follows cannot reach them.
        """
        wanted = [(prompt, min(length, self.window)) for prompt, length in zip(prompts, lengths, strict=True)]
        found = {key: self._cache[key] for key in wanted if key in self._cache}
        missing = sorted(set(wanted) - found.keys(), key=lambda key: (key[1], key[0]))
        for batch in _batches(missing):
            length = batch[-1][1]
            states = self._states([prompt for prompt, _ in batch], length)
            for row, key in zip(states, batch, strict=True):
                found[key] = row[: key[1]].clone()
                self._remember(key, found[key])
        return [found[key] for key in wanted]

    def unconditional(self) -> Tensor:
        """The embedding of the unconditional branch when no negative prompt is given, (1, window, width).

        SDXL checkpoints with `force_zeros_for_empty_prompt` use zeros, all others the empty prompt.
        """
        empty = self.encode([""])
        return torch.zeros_like(empty) if self._zero_unconditional else empty

    @torch.no_grad()
    def encode_pooled(self, prompts: Sequence[str]) -> Tensor | None:
        """SDXL's pooled prompt embeddings, (n, projection width); None for families that read none."""
        part = self._components[-1]
        if not part.projected:
            return None
        ids, mask = self._padded(part, prompts)
        rows = [
            part.model(
                ids[start : start + 16], attention_mask=None if mask is None else mask[start : start + 16]
            )
            for start in range(0, len(prompts), 16)
        ]
        return torch.cat([row.text_embeds for row in rows])

    # -- tokens ---------------------------------------------------------------------------------------------

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
            if first < stop and last > start and first < last
        ]
        if not hit:
            raise InputError(
                f"prompt {prompt!r}",
                f"no token holds {prompt[start:stop]!r} within the window of {self.window} tokens",
                "shorten the prompt or check the spelling",
            )
        return hit[0], hit[-1] + 1

    def token_embeddings(self) -> Tensor:
        """The table of input embeddings of the last encoder, (vocabulary, width of that encoder)."""
        table: Tensor = self._components[-1].model.get_input_embeddings().weight
        return table.detach()

    # -- inside ---------------------------------------------------------------------------------------------

    def _padded(self, part: _Component, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Padded ids (n, window) and, only where the encoder's config asks for it, the attention mask."""
        encoded = part.tokenizer(
            list(prompts), padding="max_length", max_length=self.window, truncation=True, return_tensors="pt"
        )
        masked = getattr(part.model.config, "use_attention_mask", False) and not part.penultimate
        mask = encoded.attention_mask.to(self.device) if masked else None
        return encoded.input_ids.to(self.device), mask

    @torch.no_grad()
    def _states(self, prompts: Sequence[str], length: int) -> Tensor:
        """Both encoders' states side by side, (n, length, width)."""
        states = []
        for part in self._components:
            ids, mask = self._padded(part, prompts)
            states.append(part.states(ids[:, :length], None if mask is None else mask[:, :length]))
        return torch.cat(states, dim=-1)

    def _remember(self, key: tuple[str, int], value: Tensor) -> None:
        self._cache[key] = value
        self._cached_bytes += value.nbytes
        while self._cached_bytes > _CACHE_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes


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


def _load(
    checkpoint: Checkpoint, suffix: str, sdxl: bool, device: torch.device, dtype: torch.dtype
) -> _Component:
    # Straight from their modules: the package's lazy front door costs seconds of imports more.
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    name = f"text_encoder{suffix}"
    folder = checkpoint.root / name
    projected = sdxl and suffix == "_2"
    files = [path.name for path in checkpoint.weights(name).files]
    variant = checkpoint.variant
    if variant is not None and not any(f".{variant}" in file for file in files):
        variant = None  # this component ships without the variant; diffusers falls back in the same way
    kind: Any = CLIPTextModelWithProjection if projected else CLIPTextModel
    with _without_progress_bars():
        model, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    broken = sorted(
        {str(key) for field in ("missing_keys", "mismatched_keys") for key in info.get(field, ())}
    )
    if broken:
        shown = ", ".join(broken[:3])
        raise InputError(
            str(folder),
            f"{len(broken)} weights are missing or have the wrong shape: {shown}",
            "restore the files",
        )
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint.root / f"tokenizer{suffix}", local_files_only=True)
    positions = model.config.max_position_embeddings
    if tokenizer.model_max_length > positions:
        raise InputError(
            str(checkpoint.root / f"tokenizer{suffix}"),
            f"its window is {tokenizer.model_max_length} tokens, the text encoder has {positions} positions",
            f"set model_max_length to {positions} in tokenizer_config.json",
        )
    model.requires_grad_(False)
    return _Component(tokenizer, model.eval().to(device), penultimate=sdxl, projected=projected)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Progress is ours to show, and a bar for a second of loading says nothing."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions carry no types
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
