"""Pointwise colour changes, several in one read of the canvas, and tests whether two images differ.

Brightness, contrast, luma, hue, saturation and permutations of channels are colour maps: an output channel is a
weighted sum of the input channels plus a constant, rounded and clipped to uint8. A map (3, 4) holds the weights and, in
its last column, the constants in levels. Results are within 0.51 levels of the formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.dispatch import on_triton, upload

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

Bands = tuple[torch.Tensor, torch.Tensor]


def colours(canvas_BSS3: torch.Tensor, maps_VB34: torch.Tensor, bands: Bands | None = None) -> torch.Tensor:
    """Apply V colour maps and, with ``bands``, a banded inversion. Shape: (V or V + 1, B, S, S, 3) uint8.

    Args:
        canvas_BSS3: (B, S, S, 3) uint8.
        maps_VB34: (V, B, 3, 4) float32, on the canvas's device.
        bands: (B, S) uint8 for rows and for columns, 255 to invert and 0 elsewhere (inverted twice is unchanged). The
            result is last.
    """
    if canvas_BSS3.shape[1:3].numel() % 4 == 0 and on_triton(canvas_BSS3):
        from substyle.kernels import color_triton

        whole = None if bands is None else (bands[0].contiguous(), bands[1].contiguous())
        return color_triton.colours(canvas_BSS3.contiguous(), maps_VB34.contiguous(), whole)
    return colours_reference(canvas_BSS3, maps_VB34, bands)


def colours_reference(canvas_BSS3: torch.Tensor, maps_VB34: torch.Tensor, bands: Bands | None = None) -> torch.Tensor:
    """:func:`colours` in plain torch, on any device."""
    count = len(maps_VB34)
    shape = (count + (bands is not None), *canvas_BSS3.shape)
    out = torch.empty(shape, dtype=torch.uint8, device=canvas_BSS3.device)
    level = canvas_BSS3.float()
    for v, map_B34 in enumerate(maps_VB34):
        mixed = torch.einsum("byxc,bdc->byxd", level, map_B34[:, :, :3]) + map_B34[:, None, None, :, 3]
        out[v] = (mixed.clamp_(0, 255) + 0.5).to(torch.uint8)
    if bands is not None:
        out[count] = canvas_BSS3 ^ bands[0][:, :, None, None] ^ bands[1][:, None, :, None]
    return out


def mean(canvas_BSSC: torch.Tensor) -> torch.Tensor:
    """Mean level of each image over pixels and channels, from an exact sum. Shape: (B,) float32."""
    if on_triton(canvas_BSSC):
        from substyle.kernels import color_triton

        total_B = color_triton.total(canvas_BSSC.contiguous())
    else:
        total_B = canvas_BSSC.flatten(1).sum(1, dtype=torch.int64)
    return (total_B.double() / max(canvas_BSSC.shape[1:].numel(), 1)).float()


def linear(matrix_B33: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Colour map of a matrix, output channels by input channels. Shape: (B, 3, 4) float32."""
    map_B34 = np.zeros((len(matrix_B33), 3, 4), np.float32)
    map_B34[:, :, :3] = matrix_B33
    return upload(map_B34, device)


def luma(batch: int, device: torch.device) -> torch.Tensor:
    """Colour map to grey. Shape: (B, 3, 4) float32."""
    return linear(np.broadcast_to(np.array(LUMA), (batch, 3, 3)), device)


def brightness(shift_B: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Colour map that adds a share of the full range. Shape: (B, 3, 4) float32."""
    map_B34 = linear(np.broadcast_to(np.eye(3), (len(shift_B), 3, 3)), device)
    map_B34[:, :, 3] = upload((255.0 * shift_B.astype(np.float64)).astype(np.float32), device)[:, None]
    return map_B34


def contrast(factor_B: NDArray[np.float32], mean_B: torch.Tensor) -> torch.Tensor:
    """Colour map that scales the difference from a mean. Shape: (B, 3, 4) float32."""
    map_B34 = linear(factor_B[:, None, None] * np.eye(3, dtype=np.float32), mean_B.device)
    map_B34[:, :, 3] = ((1.0 - upload(factor_B, mean_B.device)) * mean_B)[:, None]
    return map_B34


_EVERY = 16  # row stride of the passes on a CPU


def distinct(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor, *, subtle: bool = False) -> torch.Tensor:
    """Whether two images differ by at least one grey level on average. Shape: (B,) bool, on the images' device.

    With ``subtle``, whether any value differs.

    On a CPU, differences are summed over every 16th row, then over the rows after these, and so on. Most images reach
    the threshold in the first pass and skip the others. A GPU sums over all rows to avoid synchronising.
    """
    if a_BSSC.device.type == "cpu":
        return _row_by_row(a_BSSC, b_BSSC, subtle)
    if on_triton(a_BSSC):
        from substyle.kernels import color_triton

        total_B = color_triton.difference_total(a_BSSC.contiguous(), b_BSSC.contiguous())
    else:
        total_B = total_reference(a_BSSC, b_BSSC)
    return total_B >= (1 if subtle else a_BSSC.shape[1:].numel())


def total_reference(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """Sum of absolute differences of each pair, in plain torch. Shape: (B,) int64."""
    difference_BSSC = torch.maximum(a_BSSC, b_BSSC) - torch.minimum(a_BSSC, b_BSSC)
    return difference_BSSC.flatten(1).sum(1, dtype=torch.int64)


def _row_by_row(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor, subtle: bool) -> torch.Tensor:
    a, b = a_BSSC.numpy(), b_BSSC.numpy()  # single-threaded: waking torch's threads would cost more
    enough = 1 if subtle else a_BSSC.shape[1:].numel()
    total_B = np.zeros(len(a), np.uint64)
    open_N = np.arange(len(a))
    for first in range(_EVERY):
        if not len(open_N):
            break
        some = slice(None) if len(open_N) == len(a) else open_N  # fancy indexing copies
        x, y = a[some, first::_EVERY], b[some, first::_EVERY]
        difference = np.maximum(x, y)
        difference -= np.minimum(x, y)
        total_B[open_N] += difference.reshape(len(open_N), -1).sum(1, dtype=np.uint32)
        open_N = open_N[total_B[open_N] < enough]
    return torch.from_numpy(total_B >= enough)
