"""Triton kernels: halftone screens, in one read and one write of the canvas.

A program computes a run of values of one image, channels innermost, so writes are coalesced. Sines and cosines are
computed on the host in float64; the square root is the hardware's (relative error 2 ** -22). Coordinates differ from
the reference by 1 ulp: one level at an edge, or the other side of a border between cells.
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

VALUES = 1024  # per program
F32 = NDArray[np.float32]


@triton.jit
def lay(level, distance, edge, size):  # type: ignore[no-untyped-def]
    """Printed level, given the distances in pixels from the centre of a dot or line to the pixel and to its edge.

    ``size`` is the size of a cell in pixels: area for dots, width for lines.
    """
    paper = level * (1.0 / 255.0)
    uncovered = tl.maximum(distance - edge + 0.5, 1.0 - tl.minimum((1.0 - paper) * size, 1.0))
    uncovered = tl.minimum(uncovered, tl.minimum(paper * size, 1.0))
    return (255.0 * uncovered + 0.5).to(tl.int32).to(tl.uint8)


@triton.jit  # type: ignore[untyped-decorator]
def _dots(canvas, screens, radii, out, height, width, channels, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (j, i): BLOCK values of image i; screens (B, C, 3) holds (cos / cell, sin / cell, cell) per channel."""
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
    """Program (j, i): BLOCK values of image i; screens (B, 3) holds (cos / pitch, sin / pitch, pitch)."""
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
    """``halftone.dots`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out, (B, C) cells and angles."""
    dispatch.expect("canvas", canvas_BSSC, torch.uint8, (len(cell_BC), None, None, cell_BC.shape[1]))
    height, width, channels = canvas_BSSC.shape[1:]
    out_BSSC = torch.empty_like(canvas_BSSC)
    grid = dispatch.grid("canvas", len(cell_BC), height * width * channels, VALUES)
    if grid is not None:
        screens, radii = _screens(cell_BC, angle_BC, canvas_BSSC.device), _radii(canvas_BSSC.device)
        dispatch.launch(_dots, grid, canvas_BSSC, screens, radii, out_BSSC, height, width, channels, BLOCK=VALUES)
    return out_BSSC


def lines(canvas_BSSC: torch.Tensor, pitch_B: F32, angle_B: F32) -> torch.Tensor:
    """``halftone.lines`` of a contiguous canvas. Shape: (B, S, S, C) uint8 in and out, (B,) pitches and angles."""
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
    """Parameters of the kernels: (..., 3) cosine and sine divided by the size, and the size in pixels."""
    wide, turned = size.astype(np.float64), angle.astype(np.float64)
    screens = np.stack([np.cos(turned) / wide, np.sin(turned) / wide, wide], axis=-1)
    return dispatch.upload(screens.astype(np.float32), device)
