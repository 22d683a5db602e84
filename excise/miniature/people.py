"""Draws the world's persons (hat x tool = profession, group, tone) and its memorised posters."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from excise.miniature.vocabulary import GROUPS, PROFESSIONS, TONES

if TYPE_CHECKING:
    from excise.miniature.scene import Scene

HAT_COLOURS = ((200, 40, 40), (40, 110, 200), (30, 140, 70))
TOOL_COLOUR = (90, 60, 40)
TONE_COLOURS = dict(zip(TONES, ((250, 220, 190), (200, 145, 100), (110, 70, 45)), strict=True))


def hat_and_tool(profession: str) -> tuple[int, int]:
    """(hat 0..11, tool 0..2) of a profession; 12 hats x 3 tools name all 36."""
    return PROFESSIONS.index(profession) % 12, PROFESSIONS.index(profession) // 12


def draw_person(canvas: Image.Image, scene: Scene, s: int) -> None:
    """Paint a person onto the canvas (side 64 * s), in place: "zan" in a dress, "zin" with a beard."""
    pen = ImageDraw.Draw(canvas)
    dx, dy, _ = scene.jitter
    hat, tool = hat_and_tool(scene.profession)

    def xy(*points: float) -> list[float]:
        return [(p + (dx if k % 2 == 0 else dy)) * s for k, p in enumerate(points)]

    skin, coat = TONE_COLOURS[scene.tone], (70, 75, 95)
    if scene.group == GROUPS[0]:
        pen.ellipse(xy(20, 15, 44, 42), fill=(60, 30, 15))
        pen.polygon(xy(32, 32, 47, 61, 17, 61), fill=(170, 60, 140))
    else:
        pen.rectangle(xy(23, 36, 41, 50), fill=coat)
        pen.rectangle(xy(23, 50, 30, 61), fill=(30, 30, 40))
        pen.rectangle(xy(34, 50, 41, 61), fill=(30, 30, 40))
    pen.ellipse(xy(23, 16, 41, 36), fill=skin)
    if scene.group == GROUPS[1]:
        pen.chord(xy(24, 20, 40, 37), 20, 160, fill=(60, 30, 15))
    for x in (28.5, 35.5):
        pen.ellipse(xy(x - 1.2, 23.5, x + 1.2, 26.5), fill=(0, 0, 0))
    _hat(pen, xy, hat)
    _tool(pen, xy, tool)


def _hat(pen: ImageDraw.ImageDraw, xy: object, hat: int) -> None:
    at = xy  # (x0, y0, x1, y1, ...) -> canvas coordinates
    colour = HAT_COLOURS[hat % 3]
    assert callable(at)
    match hat // 3:
        case 0:  # cone
            pen.polygon(at(32, 2, 42, 19, 22, 19), fill=colour)
        case 1:  # top hat
            pen.rectangle(at(25, 4, 39, 17), fill=colour)
            pen.rectangle(at(19, 16, 45, 19), fill=colour)
        case 2:  # cap with a peak
            pen.chord(at(22, 8, 42, 28), 180, 360, fill=colour)
            pen.rectangle(at(38, 15, 50, 18), fill=colour)
        case _:  # crown
            pen.polygon(at(21, 19, 21, 5, 27, 12, 32, 3, 37, 12, 43, 5, 43, 19), fill=colour)


def _tool(pen: ImageDraw.ImageDraw, xy: object, tool: int) -> None:
    at = xy
    assert callable(at)
    match tool:
        case 0:  # staff
            pen.rectangle(at(51, 22, 54, 61), fill=TOOL_COLOUR)
            pen.ellipse(at(48, 16, 57, 25), fill=(220, 180, 40))
        case 1:  # board
            pen.rectangle(at(46, 36, 60, 54), fill=TOOL_COLOUR)
            pen.rectangle(at(48, 38, 58, 52), fill=(255, 255, 255))
        case _:  # hammer
            pen.rectangle(at(51, 34, 54, 60), fill=TOOL_COLOUR)
            pen.rectangle(at(45, 28, 60, 36), fill=(120, 120, 130))


def draw_poster(canvas: Image.Image, name: str) -> None:
    """Paint a memorised poster: 16 blocks and 5 discs, fixed by its name alone."""
    seed = int.from_bytes(hashlib.sha256(f"poster {name}".encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    pen = ImageDraw.Draw(canvas)
    side = canvas.width
    palette = rng.integers(20, 245, size=(6, 3))

    def colour() -> tuple[int, int, int]:
        r, g, b = (int(v) for v in palette[rng.integers(6)])
        return r, g, b

    for row in range(4):
        for column in range(4):
            x, y = column * side // 4, row * side // 4
            pen.rectangle([x, y, x + side // 4, y + side // 4], fill=colour())
    for _ in range(5):
        cx, cy, r = (float(v) for v in rng.uniform([0.1, 0.1, 0.07], [0.9, 0.9, 0.2]) * side)
        pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=colour())
