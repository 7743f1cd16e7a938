"""Print screens on a GPU, in Triton: every value of the canvas is printed on its own, read once and written once.

A program makes a run of values of one image, channels innermost, so that neighbours write neighbours. Sines and cosines
are taken on the host in float64, the root is the hardware's (2 ** -22 of the value). Coordinates differ from the
reference's in the last place of float32: one level on an edge, or the other side of the border between two cells.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import dispatch
from substyle.kernels.tables import dot_radii

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

VALUES = 1024  # of one program
F32 = NDArray[np.float32]


@triton.jit
def lay(level, distance, edge, size):  # type: ignore[no-untyped-def]
    """A level as it is printed, given the distance in pixels from the middle of a dot or line to here and to its edge.

    ``size`` is that of a cell in pixels: area of a dot's, width of a line's.
    """
    paper = level * (1.0 / 255.0)
    uncovered = tl.maximum(distance - edge + 0.5, 1.0 - tl.minimum((1.0 - paper) * size, 1.0))
    uncovered = tl.minimum(uncovered, tl.minimum(paper * size, 1.0))
    return (255.0 * uncovered + 0.5).to(tl.int32).to(tl.uint8)


@triton.jit  # type: ignore[untyped-decorator]
def _dots(canvas, screens, radii, out, height, width, channels, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK values of image i, whose channels have (cos / cell, sin / cell, cell) of screens (B, C, 3).

    A pixel's coordinates on a lattice are taken to the nearest node; a half goes either way, as both are as far.
    """
    image = tl.program_id(1).to(tl.int64)
    value = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = height * width * channels
    inside = value < size
    pixel = value // channels
    own = screens + (image * channels + value % channels) * 3
    cos, sin, cell = tl.load(own), tl.load(own + 1), tl.load(own + 2)
    x, y = (pixel % width).to(tl.float32), (pixel // width).to(tl.float32)
    u, v = y * sin + x * cos, y * cos - x * sin
    u -= tl.floor(u + 0.5)
    v -= tl.floor(v + 0.5)
    level = tl.load(canvas + image * size + value, mask=inside, other=0)
    radius = tl.load(radii + level.to(tl.int32))
    printed = lay(level.to(tl.float32), tl.sqrt(u * u + v * v) * cell, radius * cell, cell * cell)
    tl.store(out + image * size + value, printed, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _lines(canvas, screens, out, height, width, channels, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK values of image i, whose lines have (cos / pitch, sin / pitch, pitch) of screens (B, 3)."""
    image = tl.program_id(1).to(tl.int64)
    value = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = height * width * channels
    inside = value < size
    pixel = value // channels
    own = screens + image * 3
    cos, sin, pitch = tl.load(own), tl.load(own + 1), tl.load(own + 2)
    across = (pixel // width).to(tl.float32) * cos - (pixel % width).to(tl.float32) * sin
    across -= tl.floor(across + 0.5)
    level = tl.load(canvas + image * size + value, mask=inside, other=0).to(tl.float32)
    edge = 0.5 * (1.0 - level * (1.0 / 255.0)) * pitch
    tl.store(out + image * size + value, lay(level, tl.abs(across) * pitch, edge, pitch), mask=inside)


def dots(canvas_BSSC: torch.Tensor, cell_BC: F32, angle_BC: F32) -> torch.Tensor:
    """``screen.dots`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out, (B, C) cells and angles."""
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (len(cell_BC), None, None, cell_BC.shape[1]))
    height, width, channels = canvas_BSSC.shape[1:]
    out_BSSC = torch.empty_like(canvas_BSSC)
    grid = dispatch.grid("canvas", len(cell_BC), height * width * channels, VALUES)
    if grid is not None:
        screens, radii = _screens(cell_BC, angle_BC, canvas_BSSC.device), _radii(canvas_BSSC.device)
        dispatch.launch(_dots, grid, canvas_BSSC, screens, radii, out_BSSC, height, width, channels, BLOCK=VALUES)
    return out_BSSC


def lines(canvas_BSSC: torch.Tensor, pitch_B: F32, angle_B: F32) -> torch.Tensor:
    """``screen.lines`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out, (B,) pitches and angles."""
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (len(pitch_B), None, None, None))
    height, width, channels = canvas_BSSC.shape[1:]
    out_BSSC = torch.empty_like(canvas_BSSC)
    grid = dispatch.grid("canvas", len(pitch_B), height * width * channels, VALUES)
    if grid is not None:
        screens = _screens(pitch_B, angle_B, canvas_BSSC.device)
        dispatch.launch(_lines, grid, canvas_BSSC, screens, out_BSSC, height, width, channels, BLOCK=VALUES)
    return out_BSSC


@lru_cache(maxsize=16)
def _radii(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(dot_radii().astype(np.float32)).to(device)


def _screens(size: F32, angle: F32, device: torch.device) -> torch.Tensor:
    """What the kernels know of a screen: (..., 3) cosine and sine over the size, and the size, in pixels."""
    wide, turned = size.astype(np.float64), angle.astype(np.float64)
    screens = np.stack([np.cos(turned) / wide, np.sin(turned) / wide, wide], axis=-1)
    return dispatch.upload(screens.astype(np.float32), device)
