"""Pages of tiled icons, words and lattices for overlays, drawn once per canvas side.

A page holds one motif, tiled. A canvas centred on it, at any angle and shifted by up to one cell, never leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from substyle.kernels.dispatch import upload
from substyle.pipelines.transforms.base import CANVAS

# draws white on black into a square of s px
Shape = Callable[[ImageDraw.ImageDraw, float], None]
Points = Sequence[tuple[float, float]]
WHITE, BLACK = 255, 0


def _polar(s: float, corners: int, radii: Sequence[float], turn: float = -90) -> list[tuple[float, float]]:
    """Corners around the centre; their distances from it (as shares of s) repeat ``radii``."""
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


# 200 short, common English nouns for text overlays
_TEXT = """
apple arrow autumn baker ball banjo barn basket beach bell berry bicycle bird blanket boat bone book bottle bowl
branch bread brick bridge broom brush bucket button cabin cable cake camel camera candle canyon carpet castle cave
chain chair chalk cherry chess circle city cliff clock cloud clover coast coat coffee coin comet copper coral cotton
cousin crane crown cup curtain daisy dance desert desk diamond dinner doctor donkey door dragon drawer dream drum
eagle earth elbow engine evening farm feather fence fiddle field finger fire fish flag flower flute fog forest
fountain fox friend frog garden garlic gate giant ginger glass glove goose grape grass guitar hammer harbor harvest
hat hazel hero hill honey horse hotel house iron island ivory jacket jewel juice jungle kettle kitchen kite ladder
lake lamp leaf lemon letter lily lion lizard lunch magnet maple marble market meadow melon milk mirror monkey moon
morning moth mountain mouse museum music needle nest night north nurse ocean olive onion orange orchard otter owl
paper parrot path pebble pencil pepper piano pillow pine planet plate pocket poem pond potato prairie prince pumpkin
puzzle queen rabbit radio rain ribbon rice ring river road robin rocket rope rose sail salt
"""

WORDS = tuple(_TEXT.split())


TEST_EVERY = 3  # every third motif is reserved for test images
SMOOTH = 4  # supersampling factor
Canvas8 = NDArray[np.uint8]


@dataclass(frozen=True)
class OverlayAssets:
    """Pages of equal size.

    Attributes:
        pages_NPP: (N, P, P) uint8 coverage, 255 where the motif is opaque.
        cell: side of a motif's cell, or height of a line of text, in atlas px.
    """

    pages_NPP: Canvas8
    cell: int

    def choices(self, *, test: bool) -> NDArray[np.int64]:
        """Indices of the pages for test images or for all others; the two sets are disjoint."""
        every = range(len(self.pages_NPP))
        return np.array([i for i in every if (i % TEST_EVERY == TEST_EVERY - 1) == test], dtype=np.int64)


@lru_cache(maxsize=2)
def icons(side: int) -> OverlayAssets:
    """Pages of 48 icons; the smallest pitch is 20 px of a canvas of 224."""
    cell = _scaled(28, side)
    tiles = []
    for draw in ICONS:
        tile = np.zeros((cell, cell), np.uint8)
        inner = max(2, round(cell * 0.85))
        start = (cell - inner) // 2
        tile[start : start + inner, start : start + inner] = _drawn(draw, inner)
        tiles.append(tile)
    return _assemble(tiles, cell, _page_side(cell, 20))


@lru_cache(maxsize=2)
def words(side: int) -> OverlayAssets:
    """One page per word, in lines; the smallest line pitch is 14 px of a canvas of 224."""
    cell = _scaled(16, side)
    font = ImageFont.load_default(size=0.92 * cell * SMOOTH)
    return _assemble([_strip(word, cell, font) for word in WORDS], cell, _page_side(cell, 14))


@lru_cache(maxsize=2)
def lattices(side: int) -> OverlayAssets:
    """Pages of five lattices; the smallest pitch is 6 px of a canvas of 224."""
    cell = _scaled(8, side)
    return _assemble([_drawn(draw, cell) for draw in LATTICES], cell, _page_side(cell, 6))


@lru_cache(maxsize=8)
def on_device(build: Callable[[int], OverlayAssets], side: int, device: torch.device) -> torch.Tensor:
    """The pages of an atlas on a device, uploaded once. Shape: (N, P, P) uint8."""
    pages_NPP = upload(build(side).pages_NPP, device)
    if device.type == "cuda":  # later callers may be on other streams
        torch.cuda.current_stream(device).synchronize()
    return pages_NPP


def _scaled(length: int, side: int) -> int:
    return max(4, round(length * side / CANVAS))


def _page_side(cell: int, pitch: float) -> int:
    """Atlas px for the canvas's diagonal at the smallest pitch (px at 224), a shift of one cell, and a margin."""
    return cell * (math.ceil(CANVAS * math.sqrt(2) / pitch) + 3)


def _drawn(draw: Callable[[ImageDraw.ImageDraw, float], None], size: int) -> Canvas8:
    large = Image.new("L", (size * SMOOTH, size * SMOOTH))
    draw(ImageDraw.Draw(large), size * SMOOTH)
    return np.asarray(large.resize((size, size), Image.Resampling.BOX))


def _strip(word: str, cell: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Canvas8:
    """Draw a word and a gap. Shape: (cell, width of word and gap)."""
    width = math.ceil(font.getlength(word) / SMOOTH + 0.6 * cell)
    large = Image.new("L", (width * SMOOTH, cell * SMOOTH))
    middle = (width * SMOOTH / 2, cell * SMOOTH / 2)
    ImageDraw.Draw(large).text(middle, word, fill=255, font=font, anchor="mm", stroke_width=round(0.02 * cell * SMOOTH))
    return np.asarray(large.resize((width, cell), Image.Resampling.BOX))


def _assemble(tiles: Sequence[Canvas8], cell: int, page: int) -> OverlayAssets:
    """Tile each motif over its page; lines of tiles wider than a cell are shifted against each other."""
    pages_NPP = np.empty((len(tiles), page, page), np.uint8)
    for filled, tile in zip(pages_NPP, tiles, strict=True):
        width = tile.shape[1]
        line = np.tile(tile, (1, math.ceil(page / width) + 1))
        for top in range(0, page, cell):
            shift = 0 if width == cell else round(top // cell * 0.382 * width) % width
            filled[top : top + cell] = line[:, shift : shift + page]
    return OverlayAssets(pages_NPP, cell)
