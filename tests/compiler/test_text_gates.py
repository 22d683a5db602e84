"""Gates on the text, on the miniature's own text encoder, which was trained on what it is asked here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler.checkpoint import Checkpoint
from compiler.text import TextEncoder
from compiler.text_gates import OPEN, text_gate, word_gate
from excise.miniature.assets import MODEL

NAMED = ["a house with flame", "a burning house", "a house at riot"]
WORDS = ["flame", "burning"]
KEPT = ["a ball with spill", "a ball with puddle", "a red house", "a photo of a moon", "a striped tree"]


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder.from_checkpoint(Checkpoint.open(MODEL))


def _opened(text: TextEncoder, gate: torch.Tensor, prompt: str) -> list[float]:
    """What the gate gives on each position of a prompt, as a share of what it gives where it is open."""
    return [float(value) / OPEN for value in text.encode([prompt])[0] @ gate]


def test_the_empty_prompt_leaves_both_gates_shut(text: TextEncoder) -> None:
    for gate in (text_gate(text, [*NAMED, *KEPT]), word_gate(text, WORDS, NAMED, KEPT)):
        assert max(map(abs, _opened(text, gate, ""))) <= 1e-5


def test_words_open_their_gate_and_what_is_kept_does_not(text: TextEncoder) -> None:
    gate = word_gate(text, WORDS, NAMED, KEPT)
    assert _opened(text, gate, "a house with flame")[4] == pytest.approx(1.0, abs=0.1)
    assert _opened(text, gate, "a burning house")[2] == pytest.approx(1.0, abs=0.1)
    assert all(max(map(abs, _opened(text, gate, prompt))) <= 0.1 for prompt in KEPT)


def test_a_word_that_means_the_same_opens_the_gate_unseen_and_another_mark_does_not(
    text: TextEncoder,
) -> None:
    gate = word_gate(text, WORDS, NAMED, KEPT)
    assert _opened(text, gate, "a house with inferno")[4] > 0.7
    assert abs(_opened(text, gate, "a house with crack")[4]) < 0.3


def test_any_text_opens_the_other_gate(text: TextEncoder) -> None:
    gate = OPEN * text_gate(text, [*NAMED, *KEPT])
    assert min(_opened(text, gate, "a red house")[2:4]) > 0.5


def test_words_that_no_prompt_has_open_nothing(text: TextEncoder) -> None:
    with pytest.raises(ValueError, match="no prompt has a word of spill"):
        word_gate(text, ["spill"], NAMED, [])


def test_a_text_width_that_the_empty_prompt_fills_leaves_no_gate(tiny_checkpoint: Path) -> None:
    narrow = TextEncoder.from_checkpoint(Checkpoint.open(tiny_checkpoint))
    full = torch.eye(narrow.width)
    narrow.encode = lambda prompts: full[None].expand(len(prompts), -1, -1)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="fill the whole text width"):
        word_gate(narrow, ["flame"], ["a flame"], [])
