"""A before/after picture for people: rows are prompts, columns are seeds, the base above the edited model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Images = np.ndarray[Any, np.dtype[np.uint8]]

TILE = 128  # pixels a picture's longer side is shown with: small ones are enlarged by whole numbers
GAP = 4
BETWEEN_ROWS = 14
FONT_SIZE = 14
LINE = 20
MARGIN = 12
GUTTER = 56  # left of the pictures, for "base" and "edited"
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)


class GridRow(NamedTuple):
    """One prompt: its title and the same draws by both models, each uint8 (n, height, width, 3)."""

    title: str
    base: Images
    edited: Images


def before_after_grid(
    rows: Sequence[tuple[str, Images, Images]], path: Path, caption: str = "base above, edited below"
) -> None:
    """Write the grid as PNG; equal rows give equal bytes. Raises `ValueError` without rows."""
    from PIL import Image, ImageDraw, ImageFont

    if not rows:
        raise ValueError("a grid needs at least one row")
    font = ImageFont.load_default(FONT_SIZE)
    strips = [GridRow(title, _tiles(base), _tiles(edited)) for title, base, edited in rows]
    width = max(_strip_width(strip, font) for strip in strips) + 2 * MARGIN
    height = MARGIN + LINE + sum(_strip_height(strip) + BETWEEN_ROWS for strip in strips) + MARGIN
    sheet = Image.new("RGB", (int(width), height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), caption, FAINT, font)
    top = MARGIN + LINE + BETWEEN_ROWS // 2
    for strip in strips:
        pen.text((MARGIN, top), strip.title, INK, font)
        top += LINE
        for name, pictures in (("base", strip.base), ("edited", strip.edited)):
            side = pictures.shape[1]
            pen.text((MARGIN, top + side // 2 - FONT_SIZE // 2), name, FAINT, font)
            for column, picture in enumerate(pictures):
                at = (MARGIN + GUTTER + column * (pictures.shape[2] + GAP), top)
                sheet.paste(Image.fromarray(picture), at)
            top += side + GAP
        top += BETWEEN_ROWS - GAP
    _save(sheet, path)


def _save(sheet: Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)
    path.chmod(0o644)


def _tiles(images: Images) -> Images:
    """Pictures near TILE pixels: small ones by repeating pixels, large ones by averaging boxes."""
    import numpy as np
    from PIL import Image

    height, width = images.shape[1:3]
    longest = max(height, width)
    if longest <= TILE:
        times = max(1, TILE // longest)
        return images.repeat(times, axis=1).repeat(times, axis=2)
    size = (max(1, width * TILE // longest), max(1, height * TILE // longest))
    tiles: Images = np.stack(
        [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images]
    )
    return tiles


def _strip_width(strip: GridRow, font: FreeTypeFont | ImageFont) -> float:
    pictures = max(len(strip.base), len(strip.edited)) * int(strip.base.shape[2] + GAP)
    return max(float(GUTTER + pictures), float(font.getlength(strip.title)))


def _strip_height(strip: GridRow) -> int:
    return int(LINE + strip.base.shape[1] + strip.edited.shape[1] + 2 * GAP)
