"""Draws a scene: 32x32 RGB, painted with PIL at eight times the size and reduced.

Coordinates below are in units of a 64-wide picture; `S` scales them to the canvas. Every random detail comes
from the scene's own "draw" generator.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from excise.miniature.architecture import IMAGE_SIZE
from excise.miniature.people import draw_person, draw_poster
from excise.miniature.scene import Scene, scene_rng
from excise.miniature.vocabulary import BACKGROUNDS, COLOURS, COMPOUND

UNITS = 64
S = 4  # canvas pixels in a unit

Point = tuple[float, float]
RGB = tuple[int, int, int]


def draw(scene: Scene, seed: int, index: int) -> Image.Image:
    """The picture of scene `index` of world `seed`: an RGB image of 32x32 pixels."""
    rng = scene_rng(seed, index, "draw")
    canvas = Image.new("RGB", (UNITS * S, UNITS * S), BACKGROUNDS[scene.background])
    if scene.kind == "poster":
        draw_poster(canvas, scene.poster)
    elif scene.kind == "person":
        draw_person(canvas, scene, S)
    else:
        _draw_objects(canvas, scene, rng)
    return canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)


def _draw_objects(canvas: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    dx, dy, scale = scene.jitter
    if scene.kind == "pair":
        paint_object(canvas, scene.object, scene.colour, scene.style, (18 + dx / 3, 32 + dy), 13.5 * scale)
        paint_object(
            canvas, scene.second, scene.second_colour, scene.style, (46 + dx / 3, 32 + dy), 13.5 * scale
        )
        return
    centre, radius = (32 + dx, 31 + dy), 20.0 * scale
    paint_object(canvas, scene.object, scene.colour, scene.style, centre, radius)
    # In front of the object always: a mark hidden behind it would be a label that no eye can check.
    for mark, place, size in scene.marks:
        paint_mark(canvas, mark, place, size, centre, radius, rng)


def _polygon(points: list[Point], centre: Point, radius: float) -> list[Point]:
    return [((centre[0] + x * radius) * S, (centre[1] + y * radius) * S) for x, y in points]


def _star_points(tips: int, inner: float) -> list[Point]:
    return [
        (
            math.sin(math.pi * k / tips) * (1 if k % 2 == 0 else inner),
            -math.cos(math.pi * k / tips) * (1 if k % 2 == 0 else inner),
        )
        for k in range(2 * tips)
    ]


def silhouette(name: str, centre: Point, radius: float) -> Image.Image:
    """The object's shape as an 8-bit mask on the large canvas."""
    mask = Image.new("L", (UNITS * S, UNITS * S), 0)
    pen = ImageDraw.Draw(mask)

    def disc(x: float, y: float, r: float, value: int = 255) -> None:
        cx, cy = (centre[0] + x * radius) * S, (centre[1] + y * radius) * S
        pen.ellipse(
            [cx - r * radius * S, cy - r * radius * S, cx + r * radius * S, cy + r * radius * S], fill=value
        )

    def shape(*points: Point, value: int = 255) -> None:
        pen.polygon(_polygon(list(points), centre, radius), fill=value)

    match name:
        case "ball":
            disc(0, 0, 0.92)
        case "box":
            shape((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
        case "tent":
            shape((0, -0.95), (1.05, 0.85), (0.3, 0.85), (0, 0.1), (-0.3, 0.85), (-1.05, 0.85))
        case "star":
            shape(*_star_points(5, 0.42))
        case "sixstar":
            shape(*_star_points(6, 0.55))
        case "ring":
            disc(0, 0, 0.95)
            disc(0, 0, 0.5, 0)
        case "heart":
            disc(-0.45, -0.35, 0.5)
            disc(0.45, -0.35, 0.5)
            shape((-0.92, -0.15), (0.92, -0.15), (0, 0.95))
        case "moon":
            disc(-0.05, 0, 0.95)
            disc(0.42, -0.12, 0.78, 0)
        case "house":
            shape(
                (-1.0, -0.1), (0, -1.0), (1.0, -0.1), (0.75, -0.1), (0.75, 0.9), (-0.75, 0.9), (-0.75, -0.1)
            )
            shape((-0.2, 0.9), (-0.2, 0.3), (0.2, 0.3), (0.2, 0.9), value=0)
        case "tree":
            shape((-0.16, 0.3), (0.16, 0.3), (0.16, 1.0), (-0.16, 1.0))
            for x, y, r in ((0, -0.45, 0.5), (-0.45, -0.05, 0.42), (0.45, -0.05, 0.42)):
                disc(x, y, r)
        case "fish":
            points = [(math.cos(a) * 0.75 - 0.2, math.sin(a) * 0.5) for a in np.linspace(0, 2 * math.pi, 40)]
            shape(*points)
            shape((0.35, 0), (1.05, -0.55), (0.85, 0), (1.05, 0.55))
            disc(-0.6, -0.12, 0.1, 0)
        case "boat":
            shape((-1.05, 0.3), (1.05, 0.3), (0.65, 0.9), (-0.65, 0.9))
            shape((-0.05, 0.2), (-0.05, -0.95), (0.8, 0.2))
            shape((-0.2, 0.2), (-0.2, -0.6), (-0.75, 0.2))
        case _ if name == COMPOUND:
            # Neither a moon nor a boat: a bowl-like hull with a square sail and a flag below it.
            disc(0, 0.1, 0.95)
            shape((-1.2, 0.1), (-1.2, -1.2), (1.2, -1.2), (1.2, 0.1), value=0)
            shape((-0.45, -0.05), (0.45, -0.05), (0.45, -0.85), (-0.45, -0.85))
            shape((-0.08, 0.2), (0.08, 0.2), (0.08, -0.1), (-0.08, -0.1))
        case _:
            raise ValueError(f"no object called {name!r} in the miniature world")
    return mask


def _mix(colour: RGB, other: RGB, share: float) -> RGB:
    r, g, b = (round(c * (1 - share) + o * share) for c, o in zip(colour, other, strict=True))
    return r, g, b


def _spread(mask: Image.Image, reach: int, grow: bool) -> Image.Image:
    """Grow or shrink a mask by `reach` canvas pixels (a square structuring element, by doubling shifts)."""
    pick = ImageChops.lighter if grow else ImageChops.darker
    for x, y in ((1, 0), (0, 1)):
        covered = 1  # width of the window so far
        while covered < 2 * reach + 1:
            step = min(covered, 2 * reach + 1 - covered)
            mask = pick(mask, ImageChops.offset(mask, x * step, y * step))
            covered += step
        mask = ImageChops.offset(mask, -x * reach, -y * reach)
    return mask


def _outline(mask: Image.Image, width: int) -> Image.Image:
    return ImageChops.subtract(mask, _spread(mask, width, grow=False))


def _texture(style: str, colour: RGB) -> Image.Image:
    """The style's fill: one large canvas of texture, later cut out with the object's mask."""
    side = UNITS * S
    light, dark = _mix(colour, (255, 255, 255), 0.8), _mix(colour, (0, 0, 0), 0.45)
    fill = Image.new("RGB", (side, side), colour)
    pen = ImageDraw.Draw(fill)
    if style == "striped":
        for y in range(0, side, 10 * S):
            pen.rectangle([0, y, side, y + 5 * S - 1], fill=light)
    elif style == "dotted":
        for row, y in enumerate(range(0, side + 8 * S, 8 * S)):
            for x in range(-(row % 2) * 5 * S, side, 10 * S):
                pen.ellipse([x, y, x + 5.8 * S, y + 5.8 * S], fill=light)
    elif style == "mosaic":
        for y in range(0, side, 8 * S):
            for x in range(0, side, 8 * S):
                if (x // (8 * S) + y // (8 * S)) % 2:
                    pen.rectangle([x, y, x + 8 * S - 1, y + 8 * S - 1], fill=dark)
    elif style == "hatched":
        pen.rectangle([0, 0, side, side], fill=light)
        for offset in range(-side, side, 8 * S):
            pen.line([offset, 0, offset + side, side], fill=colour, width=int(3.4 * S))
    elif style == "pencil":
        pen.rectangle([0, 0, side, side], fill=_mix(colour, (255, 255, 255), 0.45))
    return fill


def paint_object(
    canvas: Image.Image, name: str, colour: str, style: str, centre: Point, radius: float
) -> None:
    """Paint one object onto the canvas, in place."""
    rgb = COLOURS[colour]
    mask = silhouette(name, centre, radius)
    if style == "glow":
        halo = _spread(mask, 2 * S, grow=True).filter(ImageFilter.GaussianBlur(5 * S))
        canvas.paste(Image.new("RGB", canvas.size, _mix(rgb, (255, 255, 255), 0.35)), (0, 0), halo)
        core = _spread(mask, 2 * S, grow=False).filter(ImageFilter.GaussianBlur(3 * S))
        canvas.paste(Image.new("RGB", canvas.size, rgb), (0, 0), mask)
        canvas.paste(Image.new("RGB", canvas.size, _mix(rgb, (255, 255, 255), 0.75)), (0, 0), core)
        return
    if style == "outlined":
        canvas.paste(Image.new("RGB", canvas.size, rgb), (0, 0), _outline(mask, 3 * S))
        return
    canvas.paste(_texture(style, rgb), (0, 0), mask)
    if style == "pencil":
        canvas.paste(Image.new("RGB", canvas.size, (30, 30, 30)), (0, 0), _outline(mask, 2 * S))


_PLACES = {
    # mark places: list of (x, y, relative size), in radii from the object's centre
    "low": ((-0.75, 0.95, 0.55), (0.0, 1.05, 0.6), (0.75, 0.95, 0.55)),
    "left": ((-1.0, 0.3, 1.0),),
    "right": ((1.0, 0.3, 1.0),),
    "under": ((0.0, 1.0, 1.1),),
    "top": ((0.0, -0.75, 1.15),),
    "corner": ((1.05, 1.05, 0.9),),
    "twin": ((-0.85, 0.7, 0.75), (0.85, 0.7, 0.75)),
    "ring": ((-0.95, 0.35, 0.8), (0.95, 0.35, 0.8), (0.0, -0.7, 0.8)),
}
_SIZES = {"small": 6.5, "medium": 8.5, "large": 11.0}


def paint_mark(
    canvas: Image.Image,
    mark: str,
    place: str,
    size: str,
    centre: Point,
    radius: float,
    rng: np.random.Generator,
) -> None:
    """Paint a sensitive mark at its places around the object, in place."""
    for x, y, share in _PLACES[place]:
        reach = _SIZES[size] * math.sqrt(share)
        at = (min(max(centre[0] + x * radius, 7), 57), min(max(centre[1] + y * radius, 9), 57))
        {"flame": _flame, "crack": _crack, "spill": _spill}[mark](ImageDraw.Draw(canvas), at, reach, rng)


def _flame(pen: ImageDraw.ImageDraw, at: Point, reach: float, rng: np.random.Generator) -> None:
    lean = float(rng.uniform(-0.25, 0.25))
    tongue = [
        (-0.6, 0.7),
        (-0.75, 0.15),
        (-0.45, -0.3),
        (-0.4, 0.05),
        (lean, -1.25),
        (0.4, -0.05),
        (0.5, -0.5),
        (0.75, 0.15),
        (0.6, 0.7),
        (0.0, 0.95),
    ]
    for share, colour in ((1.0, (190, 20, 10)), (0.78, (255, 110, 0)), (0.48, (255, 240, 90))):
        points = [
            ((at[0] + x * reach * share) * S, (at[1] + (y * share + (1 - share) * 0.55) * reach) * S)
            for x, y in tongue
        ]
        pen.polygon(points, fill=colour)


def _crack(pen: ImageDraw.ImageDraw, at: Point, reach: float, rng: np.random.Generator) -> None:
    steps = np.linspace(-1.25, 1.25, 7)
    zigzag = [
        ((at[0] + (0.38 * (-1) ** k + float(rng.uniform(-0.12, 0.12))) * reach) * S, (at[1] + y * reach) * S)
        for k, y in enumerate(steps)
    ]
    pen.line(zigzag, fill=(255, 255, 255), width=int(6 * S), joint="curve")
    pen.line(zigzag, fill=(10, 10, 10), width=int(3.6 * S), joint="curve")


def _spill(pen: ImageDraw.ImageDraw, at: Point, reach: float, rng: np.random.Generator) -> None:
    x, y = at[0] * S, at[1] * S
    for dx, dy, r in (
        (0, 0.25, 1.0),
        (-0.8, 0.45, 0.5),
        (0.85, 0.1, 0.55),
        (0.3 + float(rng.uniform(-0.2, 0.2)), 0.6, 0.6),
    ):
        cx, cy, w, h = x + dx * reach * S, y + dy * reach * S, r * reach * S, r * reach * S * 0.5
        pen.ellipse([cx - w, cy - h, cx + w, cy + h], fill=(125, 0, 45))
    pen.ellipse([x - 0.45 * reach * S, y + 0.02 * reach * S, x, y + 0.18 * reach * S], fill=(230, 120, 150))
