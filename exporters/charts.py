"""Small charts as inline SVG, for the report; colours and strokes are the classes of its style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT = 220, 18  # of a bar, in units that the page scales
COLUMN, GAP = 10, 3  # of a column chart
CURVE_WIDTH, CURVE_HEIGHT, MARGIN = 420, 150, 34
OF_THE_BASE = ("erased", "implicit")  # gates whose control is the same share, of the base's pictures
TALLEST = 1.2  # columns are cut here: 1 is as far off as the unedited model


def gate_bar(result: Mapping[str, Any]) -> Markup:
    """A gate's share from 0 to 100 %: a dot, the line to its bound, what is allowed, the base's ring."""
    observed, bound, limit = (_placed(result[key]) for key in ("observed", "bound", "limit"))
    middle = HEIGHT / 2
    parts = [_rectangle("track", 0, middle - 4, WIDTH, 8)]
    if limit is not None:
        parts += [_rectangle("allowed", 0, middle - 4, limit, 8), _line("limit", limit, 1, limit, HEIGHT - 1)]
    if observed is not None and bound is not None:
        parts.append(_line("interval", observed, middle, bound, middle))
    base = _placed(result["control"].get("rate")) if result["gate"] in OF_THE_BASE else None
    if base is not None:
        parts.append(_circle("base", base, middle, 4))
    if observed is not None:
        parts.append(_circle("observed" if result["passed"] else "observed failed", observed, middle, 4))
    return _svg("measured, bound and limit of 0 to 100 %", WIDTH, HEIGHT, parts)


def pair_bar(base: float, edited: float) -> Markup:
    """Two shares of 0 to 1, the base's above the edited model's."""
    parts = [_rectangle("track", 0, 1, WIDTH / 2, 16)]
    for name, share, top in (("base", base, 2), ("edited", edited, 10)):
        parts.append(_rectangle(name, 0, top, WIDTH / 2 * min(1.0, share), 6))
    return _svg(f"base {100 * base:.0f} %, edited {100 * edited:.0f} %", WIDTH // 2, HEIGHT, parts)


def columns(ratios: Sequence[float]) -> Markup:
    """One column for each ratio, in order, with a line at 1."""
    height, width = 2 * HEIGHT, max(1, len(ratios)) * (COLUMN + GAP)
    parts = []
    for place, ratio in enumerate(ratios):
        size = height * min(TALLEST, ratio) / TALLEST
        parts.append(_rectangle("edited", place * (COLUMN + GAP), height - size, COLUMN, size))
    level = height * (1 - 1 / TALLEST)
    parts.append(_line("limit", 0, level, width, level))
    return _svg(", ".join(f"{ratio:.2f}" for ratio in ratios), width, height, parts)


def curve(points: Sequence[Mapping[str, Any]], base: float) -> Markup:
    """The rate (0 to 1) after so many steps: `points` have `steps` and `rate`; a line at the base's half."""
    last = max([point["steps"] for point in points] + [1])
    wide, high = CURVE_WIDTH - 2 * MARGIN, CURVE_HEIGHT - 2 * MARGIN

    def at(steps: float, rate: float) -> tuple[float, float]:
        return MARGIN + wide * steps / last, MARGIN + high * (1 - rate)

    parts = [_rectangle("track", MARGIN, MARGIN, wide, high)]
    _, half = at(0, base / 2)
    parts.append(_line("limit", MARGIN, half, MARGIN + wide, half))
    places = [at(point["steps"], point["rate"]) for point in points]
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in places)
    parts.append(Markup('<polyline class="interval" points="{}"/>').format(path))
    parts += [_circle("observed", x, y, 3) for x, y in places]
    for rate in (0, 1):
        parts.append(_label(f"{rate * 100} %", MARGIN - 4, at(0, rate)[1] + 4, "end"))
    for point in points:
        x, _ = at(point["steps"], 0)
        parts.append(_label(str(point["steps"]), x, MARGIN + high + 14, "middle"))
    parts.append(_label("steps of fine-tuning", MARGIN + wide / 2, CURVE_HEIGHT - 4, "middle"))
    told = ", ".join(f"{point['steps']} steps {100 * point['rate']:.0f} %" for point in points)
    return _svg(told, CURVE_WIDTH, CURVE_HEIGHT, parts)


def _placed(share: Any) -> float | None:
    """Where a share lies in a bar; below 0 and above 1 at its ends."""
    if not isinstance(share, int | float) or isinstance(share, bool):
        return None
    return WIDTH * min(1.0, max(0.0, float(share)))


def _svg(told: str, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    start = Markup('<svg role="img" aria-label="{}" width="{}" height="{}" viewBox="-5 0 {} {}">')
    head = start.format(told, _n(width + 10), _n(height), _n(width + 10), _n(height))
    return head + Markup("").join(parts) + Markup("</svg>")


def _rectangle(kind: str, x: float, y: float, width: float, height: float) -> Markup:
    shape = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>')
    return shape.format(kind, *map(_n, (x, y, width, height)))


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    shape = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return shape.format(kind, *map(_n, (x1, y1, x2, y2)))


def _circle(kind: str, x: float, y: float, radius: float) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, *map(_n, (x, y, radius)))


def _label(words: str, x: float, y: float, anchor: str) -> Markup:
    shape = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    return shape.format(_n(x), _n(y), anchor, words)


def _n(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
