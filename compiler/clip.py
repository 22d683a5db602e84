"""One CLIP text encoder with its tokenizer, read strictly from a checkpoint's own tensors.

The forward pass is written out here because importing transformers' model takes longer than running this one
(2.5 s against 2 s for 100 prompts), because condensed padding needs its positions and masks, and because
transformers fills missing weights with random numbers. Tests hold it equal to the stock pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint

_ACTIVATIONS = ("quick_gelu", "gelu")
_LEGACY_EOS = 2  # what old configurations say for any tokenizer; EOS is then the highest id of the prompt


@dataclass(frozen=True)
class ClipConfig:
    """The part of a `CLIPTextConfig` that decides the forward pass, with its defaults."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    vocab_size: int = 49408
    projection_dim: int = 512
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    eos_token_id: int = 49407
    use_attention_mask: bool = False

    @classmethod
    def read(cls, where: str, config: Mapping[str, Any]) -> ClipConfig:
        """From config.json. Raises InputError for what cannot be an encoder."""
        chosen = cls(
            **{name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None}
        )
        if chosen.hidden_act not in _ACTIVATIONS:
            known = " and ".join(_ACTIVATIONS)
            raise InputError(where, f"has the activation {chosen.hidden_act!r}", f"known are {known}")
        sizes = (chosen.num_hidden_layers, chosen.num_attention_heads)
        if min(sizes) < 1 or chosen.hidden_size % chosen.num_attention_heads:
            what = f"cannot cut width {chosen.hidden_size} into {chosen.num_attention_heads} attention heads"
            raise InputError(where, what)
        return chosen

    def shapes(self, projected: bool) -> dict[str, tuple[int, ...]]:
        """Every weight of the encoder by its name without `text_model.`."""
        width, inner = self.hidden_size, self.intermediate_size
        found: dict[str, tuple[int, ...]] = {
            "embeddings.token_embedding.weight": (self.vocab_size, width),
            "embeddings.position_embedding.weight": (self.max_position_embeddings, width),
        }
        norms = ["final_layer_norm"]
        for layer in range(self.num_hidden_layers):
            stem = f"encoder.layers.{layer}"
            maps = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            for part, shape in (maps | {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}).items():
                found |= {f"{stem}.{part}.weight": shape, f"{stem}.{part}.bias": shape[:1]}
            norms += [f"{stem}.layer_norm1", f"{stem}.layer_norm2"]
        found |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
        return found | ({"text_projection.weight": (self.projection_dim, width)} if projected else {})


@dataclass(frozen=True, eq=False)
class Clip:
    """A frozen text encoder and its tokenizer; SDXL has two of them."""

    tokenizer: Any
    config: ClipConfig
    weights: Mapping[str, Tensor]
    penultimate: bool  # SDXL reads the last but one layer, before the final layer norm
    projected: bool  # has a text projection: the pooled embedding of SDXL comes from here

    @property
    def width(self) -> int:
        """Length of one token's embedding."""
        return self.config.hidden_size

    @property
    def work(self) -> int:
        """Multiplications that one position costs in all layers, attention among positions left out."""
        config = self.config
        return config.num_hidden_layers * 2 * self.width * (2 * self.width + config.intermediate_size)

    @property
    def masks_padding(self) -> bool:
        """Whether the stock pipeline hides padding from this encoder: a few bases ask for it."""
        return self.config.use_attention_mask and not self.penultimate

    @property
    def input_embeddings(self) -> Tensor:
        """The table of input embeddings, (vocabulary, width)."""
        return self.weights["embeddings.token_embedding.weight"]

    def padded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Ids (n, window) as the stock pipeline pads and cuts them, with the mask it gives the encoder."""
        encoded = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        device = self.input_embeddings.device
        return encoded.input_ids.to(device), encoded.attention_mask.to(device) if self.masks_padding else None

    def states(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """What cross-attention reads, (n, tokens, width), for ids (n, tokens).

        A float `mask` (tokens, tokens) is added to attention scores and replaces the causal one; an integer
        mask (n, tokens) hides the tokens where it is 0. `positions` (tokens,) are 0, 1, 2, ... unless given.
        """
        if self.penultimate:
            return self._layers(ids, mask, positions, self.config.num_hidden_layers - 1)
        return self._norm(
            self._layers(ids, mask, positions, self.config.num_hidden_layers), "final_layer_norm"
        )

    def states_of(self, embedded: Tensor, mask: Tensor | None = None) -> Tensor:
        """`states` of input embeddings (n, tokens, width) that need be no word's; gradients flow to them."""
        count = self.config.num_hidden_layers - int(self.penultimate)
        states = self._run(embedded, mask, None, count)
        return states if self.penultimate else self._norm(states, "final_layer_norm")

    def pooled(self, prompt: str) -> Tensor:
        """The projected embedding of a whole prompt at its EOS, (1, projection width)."""
        ids, mask = self.padded([prompt])
        states = self._layers(ids, mask, None, self.config.num_hidden_layers)
        legacy = self.config.eos_token_id == _LEGACY_EOS
        end = (ids[0] if legacy else (ids[0] == self.config.eos_token_id).int()).argmax()
        state = self._norm(states[:, end], "final_layer_norm")
        return functional.linear(state, self.weights["text_projection.weight"])

    @torch.no_grad()
    def _layers(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, count: int) -> Tensor:
        """Hidden states after `count` layers, (n, tokens, width)."""
        return self._run(self.input_embeddings[ids], mask, positions, count)

    def _run(self, embedded: Tensor, mask: Tensor | None, positions: Tensor | None, count: int) -> Tensor:
        """`_layers` from input embeddings (n, tokens, width) on."""
        length = embedded.shape[1]
        places = self.weights["embeddings.position_embedding.weight"]
        states = embedded + (places[:length] if positions is None else places[positions])
        if mask is not None and not mask.is_floating_point():
            hidden = states.new_zeros(mask.shape).masked_fill(mask == 0, float("-inf"))[:, None, None]
            mask = hidden + states.new_full((length, length), float("-inf")).triu(1)
        for layer in range(count):
            stem = f"encoder.layers.{layer}"
            states = states + self._attention(
                self._norm(states, f"{stem}.layer_norm1"), f"{stem}.self_attn", mask
            )
            inner = self._linear(self._norm(states, f"{stem}.layer_norm2"), f"{stem}.mlp.fc1")
            states = states + self._linear(self._activation(inner), f"{stem}.mlp.fc2")
        return states

    def _attention(self, states: Tensor, stem: str, mask: Tensor | None) -> Tensor:
        heads = self.config.num_attention_heads
        query, key, value = (
            self._linear(states, f"{stem}.{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        heard = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        return self._linear(heard.transpose(1, 2).flatten(2), f"{stem}.out_proj")

    def _activation(self, inner: Tensor) -> Tensor:
        return (
            inner * torch.sigmoid(1.702 * inner)
            if self.config.hidden_act == "quick_gelu"
            else functional.gelu(inner)
        )

    def _linear(self, states: Tensor, name: str) -> Tensor:
        return functional.linear(states, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, states: Tensor, name: str) -> Tensor:
        scale, shift = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(states, states.shape[-1:], scale, shift, self.config.layer_norm_eps)


def load(checkpoint: Checkpoint, suffix: str, device: torch.device, dtype: torch.dtype) -> Clip:
    """Load `text_encoder<suffix>` and `tokenizer<suffix>`; `suffix` is "" or "_2".

    Raises InputError where weights are missing, have other shapes than the configuration says, or do not fit
    the tokenizer.
    """
    # Straight from its module: the model's own costs seconds of imports, the tokenizer's half of one.
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    name = f"text_encoder{suffix}"
    folder = str(checkpoint.root / name)
    projected = suffix == "_2"
    config = ClipConfig.read(folder, checkpoint.config(name))
    weights = checkpoint.weights(name)
    published = {entry.removeprefix("text_model."): entry for entry in weights.entries}
    wanted = config.shapes(projected)
    shapes = {short: weights.entries[entry].shape for short, entry in published.items()}
    broken = [short for short, shape in wanted.items() if shapes.get(short) != shape]
    if broken:
        what = f"lacks {len(broken)} weights in the shapes of its configuration, such as {broken[0]}"
        raise InputError(folder, what, "restore the files")
    place = checkpoint.root / f"tokenizer{suffix}"
    with ThreadPoolExecutor(1) as beside:  # parsing a vocabulary takes as long as reading the weights
        parsed = beside.submit(CLIPTokenizer.from_pretrained, place, local_files_only=True)
        tensors = {short: weights.read(published[short]).to(device, dtype) for short in wanted}
        tokenizer = parsed.result()
    _require_fit(str(place), tokenizer, config)
    return Clip(tokenizer, config, tensors, penultimate=checkpoint.family == "sdxl", projected=projected)


def _require_fit(where: str, tokenizer: Any, config: ClipConfig) -> None:
    window, positions = tokenizer.model_max_length, config.max_position_embeddings
    if window > positions:
        what = f"has a window of {window} tokens, the text encoder {positions} positions"
        raise InputError(where, what, f"set model_max_length to {positions} in tokenizer_config.json")
    if len(tokenizer) > config.vocab_size:
        what = f"has {len(tokenizer)} tokens, the text encoder embeddings for {config.vocab_size}"
        raise InputError(where, what, "the parts belong to different models")
