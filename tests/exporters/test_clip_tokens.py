from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from editspec import InputError
from exporters.clip_tokens import ClipTokens

Copy = Callable[[Path], Path]

PROMPTS = ["", "a red star", "A  Sketch of\tthe moon!"]


def test_prompts_become_the_ids_that_transformers_gives(tiny_checkpoint: Path) -> None:
    ours = ClipTokens.open(tiny_checkpoint / "tokenizer")
    theirs = CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer")
    for prompt in PROMPTS:
        padded = theirs(prompt, padding="max_length", max_length=theirs.model_max_length, return_tensors="np")
        assert ours.ids([prompt]).tolist() == padded.input_ids.tolist()


def test_a_prompt_over_the_window_is_refused_instead_of_cut(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="this model reads 16"):
        ClipTokens.open(tiny_checkpoint / "tokenizer").ids([" ".join(["star"] * 20)])


def test_a_damaged_tokenizer_is_bad_input(tiny_checkpoint: Path, copy_of: Copy) -> None:
    folder = copy_of(tiny_checkpoint) / "tokenizer"
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        ClipTokens.open(folder)
