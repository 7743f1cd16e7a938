"""Phases: a picture of q S pixels a side as S cells a side of q x q phases, and convolutions between such pictures.

What a style generator does at two and four times the side of its residual blocks is done at their side instead, on
more channels: phase (a, b) of channel c, the pixels (q y + a, q x + b), is channel (q a + b) C + c of cell (y, x).
Nothing has to be rearranged, and vector and matrix units are filled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def phased_kernel(weight: F32, q_in: int, q_out: int) -> F32:
    """A kernel over a picture enlarged by nearest neighbour from q_in to q_out pixels a cell, as one over its cells.

    Shape: (Co, Ci, k, k) to (q_out^2 Co, q_in^2 Ci, 3, 3); k // 2 is q_out at most.
    """
    out, into, size = weight.shape[:3]
    times = q_out // q_in
    kernel = np.zeros((q_out, q_out, out, q_in, q_in, into, 3, 3), np.float32)
    for a, b, i, j in np.ndindex(q_out, q_out, size, size):
        y, x = a + i - size // 2, b + j - size // 2  # pixels of the enlarged picture, from the cell's first
        phase = (y % q_out // times, x % q_out // times)
        kernel[a, b, :, *phase, :, y // q_out + 1, x // q_out + 1] += weight[:, :, i, j]
    return kernel.reshape(q_out * q_out * out, q_in * q_in * into, 3, 3)


def mirrored_phases(q: int, *, repeat: bool, last: bool) -> list[tuple[int, int]]:
    """What the q phases of the cell beyond an edge mirror: each a cell, counted from the edge, and its phase there.

    Args:
        repeat: the edge pixel comes twice (so a picture that is enlarged afterwards is mirrored about a pixel).
        last: the edge is the last of its axis, not the first.
    """
    distances = [d if repeat else d + 1 for d in range(q)]  # of the mirrored pixels from the edge, nearest first
    if last:
        return [(d // q, q - 1 - d % q) for d in distances]
    return [(d // q, d % q) for d in reversed(distances)]


def edge_kernel(channels: int, q: int, *, repeat: bool, last: bool) -> F32:
    """The kernel that makes a row of cells beyond an edge out of the one or two at it, see :func:`mirrored_phases`.

    Shape: (q^2 C, q^2 C, 1 or 2, 1).
    """
    sources = mirrored_phases(q, repeat=repeat, last=last)
    cells = 1 + max(cell for cell, _ in sources)
    kernel = np.zeros((q, q * channels, q, q * channels, cells), np.float32)
    for phase, (cell, source) in enumerate(sources):
        kernel[phase, :, source, :, cells - 1 - cell if last else cell] = np.eye(q * channels)
    return kernel.reshape(q * q * channels, q * q * channels, cells, 1)


def turned(kernel: F32, channels: int, q: int) -> F32:
    """A kernel with rows and columns exchanged, of cells and of phases."""
    parts = kernel.reshape(q, q, channels, q, q, channels, *kernel.shape[2:])
    return parts.transpose(1, 0, 2, 4, 3, 5, 7, 6).reshape(*kernel.shape[:2], *kernel.shape[:1:-1])


def put_together(cells_BYXP: NDArray[np.uint8], q: int, out_BSSC: NDArray[np.uint8]) -> None:
    """Write the picture whose q^2 phases of three channels these are. Shape: (B, S, S, 3 q^2) to (B, q S, q S, 3)."""
    batch, rows, columns = cells_BYXP.shape[:3]
    whole = f"V{3 * q}"  # a line of a cell is moved as a whole, not byte by byte
    lines = cells_BYXP.reshape(batch, rows, columns, q, 3 * q).view(whole)[..., 0]
    out_BSSC.reshape(batch, rows, q, columns, 3 * q).view(whole)[..., 0] = lines.transpose(0, 1, 3, 2)
