"""By which tensors of the U-Net a shift is carried: which, which words open them, and the carrier itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compiler.sites import bias_sites, text_sites
from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.carriers import Carrier
    from compiler.passes import PassContext
    from compiler.safetensors_file import TensorEntry
    from editspec import Direction, Shift


def carrying(edit: Shift, entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
    """Names of the U-Net tensors that a discovered direction of `edit` is carried by."""
    biases = () if edit.gated else bias_sites(entries, edit.sites)
    values = text_sites(entries, edit.sites) if edit.gated or edit.words else ()
    return (*biases, *values)


def opening_words(direction: Direction, prompts: Sequence[str], kept: Sequence[str]) -> tuple[str, ...]:
    """The words of what the direction leads away from that `prompts` name, and that nothing kept says."""
    spared = {word for prompt in (direction.prompt or "", *kept) for word in words_of(prompt)}
    named = {word for prompt in prompts for word in words_of(prompt)}
    away = words_of(direction.negative_prompt or "")
    return tuple(word for word in away if word in named and word not in spared)


def words_of(prompt: str) -> tuple[str, ...]:
    """The words of a prompt in lower case, each once."""
    return tuple(dict.fromkeys(re.findall(r"\w+", prompt.lower())))


def carrier_of(
    edit: Shift, direction: Direction, prompts: Sequence[str], kept: Sequence[str], context: PassContext
) -> Carrier:
    """The carrier of a direction that is learned on `prompts` and leaves `kept` alone.

    Raises InputError where the base's text embeddings leave no room for a gate.
    """
    from compiler.carriers import Biases, BiasesAndWords, TextGate
    from compiler.text_gates import text_gate, word_gate

    names = carrying(edit, context.checkpoint.weights("unet").entries)
    if not edit.gated and not edit.words:
        return Biases(names)
    try:
        if edit.gated:
            also = [text for text in (direction.prompt, direction.negative_prompt) if text]
            return TextGate(names, text_gate(context.text(), tuple(dict.fromkeys((*prompts, *also, *kept)))))
        words = opening_words(direction, prompts, kept)
        return BiasesAndWords(names, word_gate(context.text(), words, prompts, kept))
    except ValueError as error:
        field = "gated" if edit.gated else "words"
        what = f"this base cannot be gated by its text: {error}"
        raise InputError(f"{context.spec.pointer(edit)}/{field}", what, f"leave '{field}' out") from error
