"""Halftone screens: dots or lines of ink whose size follows the tone, with edges antialiased over one pixel.

A channel is an ink on white paper: level v covers a share 1 - v / 255 of every cell of its screen.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.dispatch import for_each_image, fused, scratch, upload
from substyle.kernels.tables import _SHARE, dot_radii

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def _inks(edge: NDArray[np.float64], size: NDArray[np.float64]) -> F32:
    """Lookup tables of screens by level, from edges (…, 256) and sizes (…, 1). Shape: (…, 3, 256).

    The first holds 255 times the distance in pixels from the centre of a dot or line to its edge; the others bounds of
    the printed level: a pixel holds at most the whole dot or line, and at most the whole gap.

    Args:
        size: of a cell in pixels: area for dots, width for lines.
    """
    lightest, darkest = 1.0 - np.minimum(_SHARE * size, 1.0), np.minimum((1.0 - _SHARE) * size, 1.0)
    return (255.0 * np.stack([edge, lightest, darkest], axis=-2)).astype(np.float32)


def _lay(ink_3V: F32, distance: F32, level: U8, out: U8) -> None:
    """Print one channel, given every pixel's distance in pixels from the centre of a dot or line."""
    index, printed, looked_up = (
        scratch(f"screen.{use}", level.shape, dtype)
        for use, dtype in (("index", np.intp), ("printed", np.float32), ("looked_up", np.float32))
    )
    edge, lightest, darkest = ink_3V
    index[...] = level
    np.multiply(distance, np.float32(255.0), out=printed)
    np.subtract(printed, edge.take(index, mode="clip", out=looked_up), out=printed)
    np.add(printed, np.float32(127.5), out=printed)
    np.maximum(printed, lightest.take(index, mode="clip", out=looked_up), out=printed)
    np.minimum(printed, darkest.take(index, mode="clip", out=looked_up), out=printed)
    np.add(printed, np.float32(0.5), out=out, casting="unsafe")


def dots(canvas_BSSC: torch.Tensor, cell_BC: F32, angle_BC: F32) -> torch.Tensor:
    """Colour halftone: round dots on a rotated square lattice per channel. Shape: (B, S, S, C) uint8.

    Args:
        cell_BC: (B, C) side of a lattice cell in pixels.
        angle_BC: (B, C) angle of the lattice in radians.
    """
    if canvas_BSSC.device.type != "cpu":
        return dots_reference(canvas_BSSC, cell_BC, angle_BC)
    out_BSSC = torch.empty(canvas_BSSC.shape, dtype=torch.uint8)
    source, target = canvas_BSSC.numpy(), out_BSSC.numpy()
    size = source.shape[1:3]
    y, x = (np.arange(n, dtype=np.float32) for n in size)
    cell_BC1, angle_BC = cell_BC[..., None].astype(np.float64), angle_BC.astype(np.float64)
    cos_BC, sin_BC = ((f(angle_BC) / cell_BC1[..., 0]).astype(np.float32) for f in (np.cos, np.sin))
    ink_BC3V = _inks(*np.broadcast_arrays(dot_radii() * cell_BC1, cell_BC1**2))

    def one(i: int) -> None:
        along, whole, distance = (scratch(f"screen.{use}", size, np.float32) for use in ("along", "whole", "distance"))
        for channel in range(source.shape[3]):
            cos, sin = cos_BC[i, channel], sin_BC[i, channel]
            for down, right, square in ((sin, cos, distance), (cos, -sin, along)):  # of lattice coordinates, in cells
                np.add((y * down)[:, None], x * right, out=square)
                np.subtract(square, np.rint(square, out=whole), out=square)
                np.multiply(square, square, out=square)
            np.sqrt(np.add(distance, along, out=distance), out=distance)
            np.multiply(distance, cell_BC[i, channel], out=distance)
            _lay(ink_BC3V[i, channel], distance, source[i, :, :, channel], target[i, :, :, channel])

    for_each_image(len(source), one)
    return out_BSSC


def dots_reference(canvas_BSSC: torch.Tensor, cell_BC: F32, angle_BC: F32) -> torch.Tensor:
    """:func:`dots` in plain torch, on any device."""
    given = cell_BC[:, None, None], angle_BC[:, None, None], dot_radii().astype(np.float32)
    return _dots(canvas_BSSC, *(upload(values, canvas_BSSC.device) for values in given))


@fused
def _dots(canvas_BSSC: torch.Tensor, cell: torch.Tensor, angle: torch.Tensor, radius_V: torch.Tensor) -> torch.Tensor:
    y, x = _axes(canvas_BSSC)
    u = (x * torch.cos(angle) + y * torch.sin(angle)) / cell
    v = (y * torch.cos(angle) - x * torch.sin(angle)) / cell
    distance = torch.hypot(u - u.round(), v - v.round()) * cell
    radius = radius_V[canvas_BSSC.long()] * cell
    return _lay_reference(canvas_BSSC, distance, radius, cell**2)


def lines(canvas_BSSC: torch.Tensor, pitch_B: F32, angle_B: F32) -> torch.Tensor:
    """Line halftone: parallel lines whose width follows the tone of each channel. Shape: (B, S, S, C) uint8.

    Args:
        pitch_B: distance between lines in pixels.
        angle_B: angle of the lines in radians.
    """
    if canvas_BSSC.device.type != "cpu":
        return lines_reference(canvas_BSSC, pitch_B, angle_B)
    out_BSSC = torch.empty(canvas_BSSC.shape, dtype=torch.uint8)
    source, target = canvas_BSSC.numpy(), out_BSSC.numpy()
    size = source.shape[1:3]
    y, x = (np.arange(n, dtype=np.float32) for n in size)
    pitch_B1 = pitch_B[:, None].astype(np.float64)
    ink_B3V = _inks(*np.broadcast_arrays(0.5 * _SHARE * pitch_B1, pitch_B1))

    def one(i: int) -> None:
        pitch, angle = float(pitch_B[i]), float(angle_B[i])
        whole, distance = (scratch(f"screen.{use}", size, np.float32) for use in ("whole", "distance"))
        np.add((y * np.float32(np.cos(angle) / pitch))[:, None], x * np.float32(-np.sin(angle) / pitch), out=distance)
        np.subtract(distance, np.rint(distance, out=whole), out=distance)
        np.multiply(np.abs(distance, out=distance), np.float32(pitch), out=distance)
        for channel in range(source.shape[3]):
            _lay(ink_B3V[i], distance, source[i, :, :, channel], target[i, :, :, channel])

    for_each_image(len(source), one)
    return out_BSSC


def lines_reference(canvas_BSSC: torch.Tensor, pitch_B: F32, angle_B: F32) -> torch.Tensor:
    """:func:`lines` in plain torch, on any device."""
    given = (values.reshape(-1, 1, 1, 1) for values in (pitch_B, angle_B))
    return _lines(canvas_BSSC, *(upload(values, canvas_BSSC.device) for values in given))


@fused
def _lines(canvas_BSSC: torch.Tensor, pitch: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    y, x = _axes(canvas_BSSC)
    across = (y * torch.cos(angle) - x * torch.sin(angle)) / pitch
    distance = (across - across.round()).abs() * pitch
    return _lay_reference(canvas_BSSC, distance, 0.5 * (1.0 - canvas_BSSC / 255.0) * pitch, pitch)


def _axes(canvas_BSSC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of rows and of columns in pixels. Shapes: (1, S, 1, 1), (1, 1, S, 1)."""
    height, width = canvas_BSSC.shape[1:3]
    y, x = (torch.arange(length, device=canvas_BSSC.device) for length in (height, width))
    return y.view(1, -1, 1, 1), x.view(1, 1, -1, 1)


def _lay_reference(
    canvas_BSSC: torch.Tensor, distance: torch.Tensor, edge: torch.Tensor, size: torch.Tensor
) -> torch.Tensor:
    """Share of uncovered paper: half of a pixel at an edge, at most the gap, at least all but the ink."""
    paper = canvas_BSSC / 255.0
    uncovered = torch.maximum(distance - edge + 0.5, 1.0 - (1.0 - paper) * size)
    uncovered = torch.minimum(uncovered.clamp(0.0, 1.0), paper * size)
    return (255.0 * uncovered + 0.5).to(torch.uint8)
