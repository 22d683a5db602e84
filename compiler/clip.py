"""One CLIP tokenizer with its text encoder, loaded strictly from a diffusers folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint


@dataclass(frozen=True)
class Clip:
    """A frozen text encoder and its tokenizer; SDXL has two of them."""

    tokenizer: Any
    model: Any
    penultimate: bool  # SDXL reads the last but one layer, before the final layer norm
    projected: bool  # has a text projection: the pooled embedding of SDXL comes from here

    @property
    def width(self) -> int:
        """Length of one token's embedding."""
        return int(self.model.config.hidden_size)

    @property
    def masks_padding(self) -> bool:
        """Whether the stock pipeline hides padding from this encoder: a few bases ask for it."""
        return bool(getattr(self.model.config, "use_attention_mask", False)) and not self.penultimate

    def padded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Ids (n, window) as the stock pipeline pads and cuts them, with the mask it gives the encoder."""
        encoded = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        device = self.model.device
        return encoded.input_ids.to(device), encoded.attention_mask.to(device) if self.masks_padding else None

    @torch.no_grad()
    def states(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """What cross-attention reads, (n, tokens, width), for ids (n, tokens)."""
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        if self.penultimate:
            states: Tensor = self.model(**inputs, output_hidden_states=True).hidden_states[-2]
        else:
            states = self.model(**inputs).last_hidden_state
        return states

    @torch.no_grad()
    def pooled(self, prompt: str) -> Tensor:
        """The projected embedding of a whole prompt, (1, projection width)."""
        ids, mask = self.padded([prompt])
        pooled: Tensor = self.model(ids, attention_mask=mask).text_embeds
        return pooled

    def input_embeddings(self) -> Tensor:
        """The table of input embeddings, (vocabulary, width)."""
        table: Tensor = self.model.get_input_embeddings().weight
        return table.detach()


def load(checkpoint: Checkpoint, suffix: str, device: torch.device, dtype: torch.dtype) -> Clip:
    """Load `text_encoder<suffix>` and `tokenizer<suffix>`; `suffix` is "" or "_2".

    Raises InputError where weights are missing, have other shapes than the configuration says, or do not fit
    the tokenizer: transformers would fill such gaps with random numbers.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    name = f"text_encoder{suffix}"
    folder = checkpoint.root / name
    projected = suffix == "_2"
    # A component without files of the variant falls back to its plain ones, as in diffusers.
    files = [path.name for path in checkpoint.weights(name).files]
    variant = checkpoint.variant if any(f".{checkpoint.variant}" in file for file in files) else None
    kind: Any = CLIPTextModelWithProjection if projected else CLIPTextModel
    try:
        with _without_progress_bars():
            model, info = kind.from_pretrained(
                folder,
                dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError) as error:  # what transformers raises for shapes and configurations
        raise InputError(str(folder), f"does not load as a CLIP text encoder: {error}") from error
    broken = sorted(
        {str(key) for field in ("missing_keys", "mismatched_keys") for key in info.get(field, ())}
    )
    if broken:
        what = f"lacks {len(broken)} weights of its architecture, among them {', '.join(broken[:3])}"
        raise InputError(str(folder), what, "restore the files")
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint.root / f"tokenizer{suffix}", local_files_only=True)
    _require_fit(checkpoint, suffix, tokenizer, model.config)
    model.requires_grad_(False)
    return Clip(
        tokenizer, model.eval().to(device), penultimate=checkpoint.family == "sdxl", projected=projected
    )


def _require_fit(checkpoint: Checkpoint, suffix: str, tokenizer: Any, config: Any) -> None:
    where = str(checkpoint.root / f"tokenizer{suffix}")
    window, positions = tokenizer.model_max_length, config.max_position_embeddings
    if window > positions:
        what = f"has a window of {window} tokens, the text encoder {positions} positions"
        raise InputError(where, what, f"set model_max_length to {positions} in tokenizer_config.json")
    if len(tokenizer) > config.vocab_size:
        what = f"has {len(tokenizer)} tokens, the text encoder embeddings for {config.vocab_size}"
        raise InputError(where, what, "the parts belong to different models")


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
