"""Pages of icons, words and lattices, drawn once for a canvas side: what overlays warp and blend.

A page is filled with one motif, tiled, and is large enough that a canvas laid over its middle, turned by any angle and
shifted by up to one cell, never leaves it.
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
from substyle.pipelines import icons as icon_shapes
from substyle.pipelines.transforms.base import CANVAS
from substyle.pipelines.words import WORDS

TEST_EVERY = 3  # every third motif is kept for test images
SMOOTH = 4  # motifs are drawn this many times larger and averaged down
Canvas8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Atlas:
    """Pages of equal size.

    Attributes:
        pages_NPP: (N, P, P) uint8 coverage, 255 where the motif is opaque.
        cell: side of a motif's cell (height of a line of text) in atlas px.
    """

    pages_NPP: Canvas8
    cell: int

    def choices(self, *, test: bool) -> NDArray[np.int64]:
        """The pages that test images, or all others, may show; the two sets are disjoint."""
        every = range(len(self.pages_NPP))
        return np.array([i for i in every if (i % TEST_EVERY == TEST_EVERY - 1) == test], dtype=np.int64)


@lru_cache(maxsize=2)
def icons(side: int) -> Atlas:
    """48 icons; the smallest pitch is 20 px of a canvas of 224."""
    cell = _scaled(28, side)
    tiles = []
    for draw in icon_shapes.ICONS:
        tile = np.zeros((cell, cell), np.uint8)
        inner = max(2, round(cell * 0.85))
        start = (cell - inner) // 2
        tile[start : start + inner, start : start + inner] = _drawn(draw, inner)
        tiles.append(tile)
    return _assemble(tiles, cell, _page_side(cell, 20))


@lru_cache(maxsize=2)
def words(side: int) -> Atlas:
    """A page for each word, in lines; the smallest line pitch is 14 px of a canvas of 224."""
    cell = _scaled(16, side)
    font = ImageFont.load_default(size=0.92 * cell * SMOOTH)
    return _assemble([_strip(word, cell, font) for word in WORDS], cell, _page_side(cell, 14))


@lru_cache(maxsize=2)
def lattices(side: int) -> Atlas:
    """Five lattices; the smallest pitch is 6 px of a canvas of 224."""
    cell = _scaled(8, side)
    return _assemble([_drawn(draw, cell) for draw in icon_shapes.LATTICES], cell, _page_side(cell, 6))


@lru_cache(maxsize=8)
def on_device(build: Callable[[int], Atlas], side: int, device: torch.device) -> torch.Tensor:
    """The pages of an atlas on a device, which are uploaded once. Shape: (N, P, P) uint8."""
    return upload(build(side).pages_NPP, device)


def _scaled(length: int, side: int) -> int:
    return max(4, round(length * side / CANVAS))


def _page_side(cell: int, pitch: float) -> int:
    """Atlas px that hold the canvas's diagonal at the smallest pitch (px at 224), a shift of a cell, and a margin."""
    return cell * (math.ceil(CANVAS * math.sqrt(2) / pitch) + 3)


def _drawn(draw: Callable[[ImageDraw.ImageDraw, float], None], size: int) -> Canvas8:
    large = Image.new("L", (size * SMOOTH, size * SMOOTH))
    draw(ImageDraw.Draw(large), size * SMOOTH)
    return np.asarray(large.resize((size, size), Image.Resampling.BOX))


def _strip(word: str, cell: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Canvas8:
    """One word and a gap. Shape: (cell, width of the word and gap)."""
    width = math.ceil(font.getlength(word) / SMOOTH + 0.6 * cell)
    large = Image.new("L", (width * SMOOTH, cell * SMOOTH))
    middle = (width * SMOOTH / 2, cell * SMOOTH / 2)
    ImageDraw.Draw(large).text(middle, word, fill=255, font=font, anchor="mm", stroke_width=round(0.02 * cell * SMOOTH))
    return np.asarray(large.resize((width, cell), Image.Resampling.BOX))


def _assemble(tiles: Sequence[Canvas8], cell: int, page: int) -> Atlas:
    """Tile each motif over its page; in strips wider than a cell every line is shifted against the one above."""
    pages_NPP = np.empty((len(tiles), page, page), np.uint8)
    for filled, tile in zip(pages_NPP, tiles, strict=True):
        width = tile.shape[1]
        line = np.tile(tile, (1, math.ceil(page / width) + 1))
        for top in range(0, page, cell):
            shift = 0 if width == cell else round(top // cell * 0.382 * width) % width
            filled[top : top + cell] = line[:, shift : shift + page]
    return Atlas(pages_NPP, cell)
