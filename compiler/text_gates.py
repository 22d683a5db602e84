"""Gates on the text: vectors k, (text width,), with k e = 0 for every token e of the empty prompt.

A value matrix V to which v k^T is added gives (k e) v more for a token e than before: nothing for the empty
prompt, and for others what the gate lets through. Both gates are least squares in the null space of the empty
prompt's embeddings, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.carrying import words_of
from compiler.text import TextEncoder

NULL = 1e-5  # singular values below this part of the largest count as zero
RIDGE = 1e-2  # of the mean energy of the fitted tokens
KEPT = 4.0  # times as much as the words counts, on average, what must not pass

# What a gate of words gives on them. Adam moves every number of a vector by the same step; what a word says
# must move farther than a bias, and with a gate of one it would still be on its way when biases have arrived.
OPEN = 4.0


def text_gate(text: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """The gate that any text opens: about one on the tokens of `prompts` after the first, padding included.

    Raises ValueError where the text width leaves no null space.
    """
    null = _null_space(text)
    words = text.encode([prompt for prompt in prompts if prompt])[:, 1:].double().flatten(0, 1)
    inside = words @ null
    return _solved(inside.T @ inside, inside.sum(0), null)


def word_gate(text: TextEncoder, words: Sequence[str], prompts: Sequence[str], kept: Sequence[str]) -> Tensor:
    """The gate that `words` open: about `OPEN` on their tokens in `prompts`, nought on all tokens of `kept`.

    Other tokens are left free: those that mean nearly the same open it nearly as far. Raises ValueError where
    the text width leaves no null space, or no prompt has any of the words.
    """
    null = _null_space(text)
    found = [state for prompt in prompts for state in _states(text, words, prompt)]
    if not found:
        raise ValueError(f"no prompt has a word of {', '.join(words)}")
    inside = torch.stack(found).double() @ null
    square = inside.T @ inside / len(inside)
    if kept:
        outside = text.encode(kept)[:, 1:].double().flatten(0, 1) @ null
        square += KEPT * (outside.T @ outside) / len(outside)
    return OPEN * _solved(square, inside.mean(0), null)


def _states(text: TextEncoder, words: Sequence[str], prompt: str) -> list[Tensor]:
    """The states of the tokens of those of the words that the prompt has."""
    said = set(words_of(prompt))
    spans = [text.subject_span(prompt, word) for word in words if word in said]
    states = text.encode([prompt])[0] if spans else None
    return [] if states is None else [states[at] for span in spans for at in range(*span)]


def _null_space(text: TextEncoder) -> Tensor:
    """An orthonormal basis of what is nought on the empty prompt, (text width, dimensions), float64."""
    empty = text.encode([""])[0].double()
    _, sizes, rows = torch.linalg.svd(empty, full_matrices=True)
    rank = int((sizes > NULL * sizes[0]).sum()) if len(sizes) else 0
    if rank == len(rows):
        raise ValueError("the empty prompt's embeddings fill the whole text width")
    basis: Tensor = rows[rank:].T
    return basis


def _solved(square: Tensor, wanted: Tensor, null: Tensor) -> Tensor:
    """Ridge regression in the null space, as a vector on embeddings, fp32."""
    ridge = RIDGE * square.diagonal().mean()
    eye = torch.eye(len(square), dtype=square.dtype, device=square.device)
    gate: Tensor = (null @ torch.linalg.solve(square + ridge * eye, wanted)).float()
    return gate
