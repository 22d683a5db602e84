from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compiler.grid import GAP, GUTTER, MARGIN, GridRow, before_after_grid

Images = np.ndarray[Any, np.dtype[np.uint8]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


def filled(value: int, count: int = 3, side: int = 64) -> Images:
    """Pictures in a colour that no letter has: all letters are grey."""
    return np.tile(np.array((value, 200, value), np.uint8), (count, side, side, 1))


def places_of(value: int, path: Path) -> Flags:
    """Where the sheet has the colour of `filled(value)`: bool (height, width)."""
    sheet = np.asarray(Image.open(path))
    places: Flags = (sheet == (value, 200, value)).all(axis=2)
    return places


def test_the_base_stands_above_the_edited_model_and_small_pictures_are_doubled(tmp_path: Path) -> None:
    before_after_grid([("a star", filled(40), filled(90))], tmp_path / "grid.png")
    column = MARGIN + GUTTER + 10
    base, edited = (np.flatnonzero(places_of(v, tmp_path / "grid.png")[:, column]) for v in (40, 90))
    assert len(base) == len(edited) == 128
    assert base.max() < edited.min()


def test_every_seed_has_a_column_and_every_prompt_a_row(tmp_path: Path) -> None:
    rows = [GridRow("a star", filled(40, 6), filled(90, 6)), GridRow("a moon", filled(41, 2), filled(91, 2))]
    before_after_grid(rows, tmp_path / "grid.png")
    places = [places_of(value, tmp_path / "grid.png") for value in (40, 41)]
    assert [place.any(axis=0).sum() for place in places] == [6 * 128, 2 * 128]
    assert places[0].shape[1] >= GUTTER + 6 * (128 + GAP)


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    before_after_grid([("a star", filled(40, 1, 512), filled(90, 1, 512))], tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size[1] < 2 * 128 + 120


def test_a_title_longer_than_its_pictures_is_not_cut(tmp_path: Path) -> None:
    before_after_grid([("a star " * 40, filled(40, 1), filled(90, 1))], tmp_path / "long.png")
    before_after_grid([("a star", filled(40, 1), filled(90, 1))], tmp_path / "short.png")
    long, short = (Image.open(tmp_path / name).size[0] for name in ("long.png", "short.png"))
    assert long > 3 * short


def test_equal_rows_give_equal_bytes_readable_by_all(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        before_after_grid([("a star", filled(40), filled(90))], tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").stat().st_mode & 0o777 == 0o644


def test_a_grid_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        before_after_grid([], tmp_path / "grid.png")
