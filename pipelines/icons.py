"""Shapes of icons and lattices, drawn with Pillow into a square of ``s`` px: white on black."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import ImageDraw

Shape = Callable[[ImageDraw.ImageDraw, float], None]
Points = Sequence[tuple[float, float]]
WHITE, BLACK = 255, 0


def _polar(s: float, corners: int, radii: Sequence[float], turn: float = -90) -> list[tuple[float, float]]:
    """Corners around the middle; their distances from it (as shares of s) repeat ``radii``."""
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    lengths = [s * radii[i % len(radii)] for i in range(corners)]
    return [(s / 2 + r * math.cos(a), s / 2 + r * math.sin(a)) for a, r in zip(angles, lengths, strict=True)]


def _polygon(corners: int) -> Shape:
    return lambda d, s: d.polygon(_polar(s, corners, [0.5]), fill=WHITE)


def _frame(corners: int) -> Shape:
    def draw(d: ImageDraw.ImageDraw, s: float) -> None:
        d.polygon(_polar(s, corners, [0.5]), fill=WHITE)
        d.polygon(_polar(s, corners, [0.27]), fill=BLACK)

    return draw


def _star(rays: int, inner: float) -> Shape:
    return lambda d, s: d.polygon(_polar(s, 2 * rays, [0.5, inner]), fill=WHITE)


def _flower(petals: int) -> Shape:
    def draw(d: ImageDraw.ImageDraw, s: float) -> None:
        for x, y in _polar(s, petals, [0.31]):
            _disk(d, x, y, min(0.19, 0.85 / petals) * s)
        _disk(d, s / 2, s / 2, 0.17 * s)
        _disk(d, s / 2, s / 2, 0.09 * s, BLACK)

    return draw


def _gear(teeth: int) -> Shape:
    def draw(d: ImageDraw.ImageDraw, s: float) -> None:
        d.polygon(_polar(s, 4 * teeth, [0.5, 0.5, 0.37, 0.37]), fill=WHITE)
        _disk(d, s / 2, s / 2, 0.16 * s, BLACK)

    return draw


def _disk(d: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int = WHITE) -> None:
    d.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _outline(*points: tuple[float, float]) -> Shape:
    """A polygon with corners as shares of s."""
    return lambda d, s: d.polygon([(x * s, y * s) for x, y in points], fill=WHITE)


def _lines(width: float, *strokes: Points) -> Shape:
    """Strokes through points as shares of s."""

    def draw(d: ImageDraw.ImageDraw, s: float) -> None:
        for stroke in strokes:
            d.line([(x * s, y * s) for x, y in stroke], fill=WHITE, width=max(1, round(width * s)), joint="curve")

    return draw


def _parts(*parts: Shape) -> Shape:
    def draw(d: ImageDraw.ImageDraw, s: float) -> None:
        for part in parts:
            part(d, s)

    return draw


def _dot(x: float, y: float, radius: float, fill: int = WHITE) -> Shape:
    return lambda d, s: _disk(d, x * s, y * s, radius * s, fill)


def _box(left: float, top: float, right: float, bottom: float, fill: int = WHITE) -> Shape:
    return lambda d, s: d.rectangle((left * s, top * s, right * s, bottom * s), fill=fill)


def _pie(start: float, end: float) -> Shape:
    return lambda d, s: d.pieslice((0, 0, s, s), start, end, fill=WHITE)


_HEART = _parts(
    _dot(0.27, 0.32, 0.25), _dot(0.73, 0.32, 0.25), _outline((0.08, 0.48), (0.5, 0.4), (0.92, 0.48), (0.5, 0.97))
)
_CLOUD = _parts(_dot(0.25, 0.62, 0.22), _dot(0.5, 0.45, 0.28), _dot(0.77, 0.6, 0.22), _box(0.25, 0.6, 0.77, 0.84))
_FISH = _parts(
    lambda d, s: d.ellipse((0.0, 0.22 * s, 0.75 * s, 0.78 * s), fill=WHITE),
    _outline((0.65, 0.5), (1.0, 0.18), (1.0, 0.82)),
    _dot(0.2, 0.42, 0.06, BLACK),
)
_SMILE = _parts(
    _dot(0.5, 0.5, 0.5),
    _dot(0.32, 0.36, 0.08, BLACK),
    _dot(0.68, 0.36, 0.08, BLACK),
    lambda d, s: d.chord((0.22 * s, 0.3 * s, 0.78 * s, 0.84 * s), 20, 160, fill=BLACK),
)
_EYE = _parts(
    lambda d, s: d.chord((-0.05 * s, 0.15 * s, 1.05 * s, 1.25 * s), 205, 335, fill=WHITE),
    lambda d, s: d.chord((-0.05 * s, -0.25 * s, 1.05 * s, 0.85 * s), 25, 155, fill=WHITE),
    _dot(0.5, 0.5, 0.2, BLACK),
    _dot(0.5, 0.5, 0.1),
)
_RIGHT = ((0.0, 0.35), (0.5, 0.35), (0.5, 0.08), (1.0, 0.5), (0.5, 0.92), (0.5, 0.65), (0.0, 0.65))

ICONS: tuple[Shape, ...] = (
    *(_polygon(corners) for corners in (3, 4, 5, 6)),
    *(_frame(corners) for corners in (3, 4, 5, 6)),
    *(_star(rays, inner) for rays, inner in ((4, 0.17), (5, 0.2), (6, 0.27), (8, 0.3), (12, 0.3))),
    *(_flower(petals) for petals in (3, 4, 5, 6, 8)),
    *(_gear(teeth) for teeth in (6, 8, 10)),
    _outline(*_RIGHT),
    _outline(*((1 - x, y) for x, y in _RIGHT)),
    _outline(*((y, x) for x, y in _RIGHT)),
    _outline(*((y, 1 - x) for x, y in _RIGHT)),
    _HEART,
    _CLOUD,
    _FISH,
    _SMILE,
    _EYE,
    _pie(35, 325),  # a mouth
    _pie(180, 360),  # a dome
    _parts(_dot(0.5, 0.5, 0.5), _dot(0.5, 0.5, 0.36, BLACK), _dot(0.5, 0.5, 0.2)),  # a target
    _parts(_dot(0.45, 0.5, 0.48), _dot(0.66, 0.42, 0.4, BLACK)),  # a crescent
    _parts(_dot(0.5, 0.66, 0.33), _outline((0.5, 0.0), (0.2, 0.53), (0.8, 0.53))),  # a drop
    _outline((0.62, 0.0), (0.14, 0.58), (0.46, 0.58), (0.34, 1.0), (0.88, 0.38), (0.54, 0.38)),  # a bolt
    _parts(_outline((0.5, 0.0), (0.0, 0.5), (1.0, 0.5)), _box(0.14, 0.5, 0.86, 1.0), _box(0.4, 0.66, 0.6, 1, BLACK)),
    _parts(_box(0.34, 0.0, 0.66, 1.0), _box(0.0, 0.34, 1.0, 0.66)),  # a plus
    _lines(0.24, ((0.1, 0.1), (0.9, 0.9)), ((0.9, 0.1), (0.1, 0.9))),  # a cross
    _lines(0.22, ((0.06, 0.55), (0.38, 0.86), (0.94, 0.16))),  # a check mark
    _parts(
        _outline((0.5, 0.0), (0.1, 0.45), (0.9, 0.45)),
        _outline((0.5, 0.22), (0.0, 0.8), (1.0, 0.8)),
        _box(0.4, 0.8, 0.6, 1),
    ),
    _parts(
        _box(0.08, 0.2, 0.7, 0.86), _dot(0.74, 0.48, 0.24), _dot(0.74, 0.48, 0.12, BLACK), _box(0.08, 0.2, 0.6, 0.86)
    ),
    _parts(
        _dot(0.26, 0.3, 0.26),
        _dot(0.26, 0.3, 0.11, BLACK),
        _lines(0.14, ((0.4, 0.44), (0.95, 0.95))),
        _lines(0.12, ((0.72, 0.74), (0.9, 0.56))),
    ),
    _parts(_dot(0.28, 0.8, 0.2), _lines(0.12, ((0.42, 0.8), (0.42, 0.06), (0.86, 0.2), (0.86, 0.4)))),  # a note
    _outline((0.1, 0.0), (0.9, 0.0), (0.1, 1.0), (0.9, 1.0)),  # an hourglass
    _parts(_box(0.1, 0.0, 0.22, 1.0), _outline((0.22, 0.04), (0.98, 0.3), (0.22, 0.56))),  # a flag
    _lines(0.16, ((0.0, 0.3), (0.25, 0.7), (0.5, 0.3), (0.75, 0.7), (1.0, 0.3))),  # a zigzag
    _parts(_dot(0.5, 0.4, 0.38), _box(0.3, 0.7, 0.7, 0.98), _dot(0.36, 0.4, 0.1, BLACK), _dot(0.64, 0.4, 0.1, BLACK)),
)

LATTICES: tuple[Shape, ...] = (
    _parts(_box(0.0, 0.0, 1.0, 0.34), _box(0.0, 0.0, 0.34, 1.0)),  # a grid
    _dot(0.5, 0.5, 0.38),  # dots
    _parts(_box(0.0, 0.0, 0.499, 0.499), _box(0.5, 0.5, 1.0, 1.0)),  # checks
    _parts(_box(0, 0, 1, 0.2), _box(0, 0.5, 1, 0.7), _box(0, 0, 0.2, 0.5), _box(0.5, 0.5, 0.7, 1)),  # bricks
    _outline((0.5, 0.0), (1.0, 1.0), (0.0, 1.0)),  # triangles
)
