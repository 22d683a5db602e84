"""Named selections of a U-Net's parameters: which tensors an edit method may change (METHODS, section 1).

Everything is decided by names and shapes: a Linear or Conv2d is a module whose weight has two or four
dimensions, a norm layer's weight has one. So planning needs no model, only safetensors headers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compiler.safetensors_file import TensorEntry

#: A rule says of one Linear or Conv2d, given its module path as parts, whether it is selected.
Rule = Callable[[Collection[str]], bool]


def _keys_and_values(parts: Collection[str]) -> bool:
    return "attn2" in parts and ("to_k" in parts or "to_v" in parts)


#: Selection name -> rule. Names in papers: cross-attention is ESD-x, cross-attention-kv ESD-x-strict (also
#: what concept ablation and UCE change), non-cross-attention ESD-u.
SELECTIONS: dict[str, Rule] = {
    "cross-attention": lambda parts: "attn2" in parts,
    "cross-attention-kv": _keys_and_values,
    "non-cross-attention": lambda parts: "attn2" not in parts,
    "self-attention": lambda parts: "attn1" in parts,
    "full": lambda parts: True,
}


def text_alone(selection: str) -> bool:
    """Whether all that it selects reads the prompt: it takes nothing of a self-attention."""
    return not SELECTIONS[selection](("attn1",))


def select(entries: Mapping[str, TensorEntry], selection: str) -> tuple[str, ...]:
    """Names of the selected tensors, weights and biases, sorted.

    `entries` are the U-Net's. Raises `KeyError` for an unknown selection: the spec's schema has already
    refused those, so it would be our own fault.
    """
    rule = SELECTIONS[selection]
    return tuple(name for name in sorted(entries) if _is_linear_or_conv(entries, name) and rule(_parts(name)))


def biases(entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
    """Names of all bias vectors, norm layers' included, sorted: what a shift adds its direction to."""
    return tuple(name for name in sorted(entries) if name.endswith(".bias") and len(entries[name].shape) == 1)


def _is_linear_or_conv(entries: Mapping[str, TensorEntry], name: str) -> bool:
    module, _, parameter = name.rpartition(".")
    weight = entries.get(f"{module}.weight")
    return parameter in ("weight", "bias") and weight is not None and len(weight.shape) in (2, 4)


def _parts(name: str) -> list[str]:
    return name.split(".")[:-1]
