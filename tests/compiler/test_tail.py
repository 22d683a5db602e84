"""Padding at a few stops: exact where that is cheap, close where it is not."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compiler.tail
from compiler.checkpoint import Checkpoint
from compiler.tail import encode_positions, stops
from compiler.text import TextEncoder

PROMPTS = ["star", "a photo of a moon", "a red star in the style of sketch", ""]


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_checkpoint_sdxl"])
def text(request: pytest.FixtureRequest) -> TextEncoder:
    folder: Path = request.getfixturevalue(request.param)
    return TextEncoder.from_checkpoint(Checkpoint.open(folder))


@given(st.integers(2, 77), st.just(77) | st.integers(2, 77))
def test_stops_lie_in_the_padding_at_growing_distances_and_end_at_the_window(
    length: int, window: int
) -> None:
    length = min(length, window)
    found = stops(length, window)
    assert found == sorted(set(found))
    if length == window:
        assert found == []
    else:
        assert found[0] == length
        assert found[-1] == window - 1
        assert all(b - a <= 2 * max(1, a - length + 1) for a, b in pairwise(found))


def test_stable_diffusion_needs_eight_stops() -> None:
    assert stops(4, 77) == [4, 5, 7, 11, 19, 35, 67, 76]


def _wanted(text: TextEncoder) -> list[list[int]]:
    return [[0, len(ids) - 1, *stops(len(ids), text.window)] for ids in text.token_ids(PROMPTS)]


def test_a_few_prompts_are_exact(text: TextEncoder) -> None:
    wanted = _wanted(text)
    rows, exact = encode_positions(text, PROMPTS, wanted)
    assert exact
    for row, full, positions in zip(rows, text.encode(PROMPTS), wanted, strict=True):
        torch.testing.assert_close(row, full[positions], atol=2e-6, rtol=1e-5)


def test_many_prompts_keep_exact_words_and_get_close_padding(
    text: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler.tail, "EXACT_WORK", 0)
    wanted = _wanted(text)
    rows, exact = encode_positions(text, PROMPTS, wanted)
    assert not exact
    empty = text.encode([""])[0]
    for row, full, positions, prompt in zip(rows, text.encode(PROMPTS), wanted, PROMPTS, strict=True):
        expected = full[positions]
        torch.testing.assert_close(row[:2], expected[:2], atol=2e-6, rtol=1e-5)
        if prompt:  # well below the distance to the empty prompt, which padding is measured from
            off = (row[2:] - expected[2:]).norm() / (expected[2:] - empty[positions[2:]]).norm()
            assert float(off) < 0.5
        else:
            torch.testing.assert_close(row, expected, atol=2e-6, rtol=1e-5)


def test_a_stop_at_every_position_is_exact_again(text: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.tail, "EXACT_WORK", 0)
    everywhere = [list(range(text.window))] * len(PROMPTS)
    rows, _ = encode_positions(text, PROMPTS, everywhere)
    torch.testing.assert_close(torch.stack(rows), text.encode(PROMPTS), atol=2e-6, rtol=1e-5)


def test_repeated_prompts_and_no_positions_are_allowed(text: TextEncoder) -> None:
    rows, _ = encode_positions(text, ["star", "star", "moon"], [[1], [1, 2], []])
    assert [len(row) for row in rows] == [1, 2, 0]
    torch.testing.assert_close(rows[0][0], rows[1][0], atol=2e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="2 prompts, 1 lists"):
        encode_positions(text, ["star", "moon"], [[1]])
