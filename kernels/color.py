"""Colour changes that look at one pixel only, several of them from one read of the canvas.

Brightness, contrast, luma, hue, saturation and permuted channels are one thing: a new channel is a weighted sum of the
three there are, plus a constant, rounded and cut to a byte. A map (3, 4) holds the weights and, last, the constants, in
levels. Banded negatives are made beside them. Results lie within rounding (0.51 levels) of the formulas.
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
    """V colour maps of every picture, and with ``bands`` its banded negative. Shape: (V or V + 1, B, S, S, 3) uint8.

    Args:
        canvas_BSS3: (B, S, S, 3) uint8.
        maps_VB34: (V, B, 3, 4) float32, on the canvas's device.
        bands: (B, S) uint8 for the rows and (B, S) for the columns, 255 where the negative is shown and 0 elsewhere
            (twice negative is positive); it comes last.
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
    """Mean level of each picture over pixels and channels, of an exact sum. Shape: (B,) float32."""
    if on_triton(canvas_BSSC):
        from substyle.kernels import color_triton

        total_B = color_triton.total(canvas_BSSC.contiguous())
    else:
        total_B = canvas_BSSC.flatten(1).sum(1, dtype=torch.int64)
    return (total_B.double() / max(canvas_BSSC.shape[1:].numel(), 1)).float()


def linear(matrix_B33: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The map of a matrix, output channels by input channels. Shape: (B, 3, 4) float32."""
    map_B34 = np.zeros((len(matrix_B33), 3, 4), np.float32)
    map_B34[:, :, :3] = matrix_B33
    return upload(map_B34, device)


def luma(batch: int, device: torch.device) -> torch.Tensor:
    """The map to grey. Shape: (B, 3, 4) float32."""
    return linear(np.broadcast_to(np.array(LUMA), (batch, 3, 3)), device)


def brightness(shift_B: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """The map to a picture lighter by a share of the full range. Shape: (B, 3, 4) float32."""
    map_B34 = linear(np.broadcast_to(np.eye(3), (len(shift_B), 3, 3)), device)
    map_B34[:, :, 3] = upload((255.0 * shift_B.astype(np.float64)).astype(np.float32), device)[:, None]
    return map_B34


def contrast(factor_B: NDArray[np.float32], mean_B: torch.Tensor) -> torch.Tensor:
    """The map to levels nearer to a mean (or further from it) by a factor. Shape: (B, 3, 4) float32."""
    map_B34 = linear(factor_B[:, None, None] * np.eye(3, dtype=np.float32), mean_B.device)
    map_B34[:, :, 3] = ((1.0 - upload(factor_B, mean_B.device)) * mean_B)[:, None]
    return map_B34


# Whether two pictures differ: the sum of absolute differences of their levels, held against one level everywhere.

_EVERY = 16  # rows; how finely a CPU divides a picture


def distinct(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """Whether two images differ by at least one grey level on average. Shape: (B,) bool, on the images' device.

    On a CPU differences are added up over every 16th row, then over every 16th of the next, and so on; an image whose
    sum is already that of one level everywhere is left out of what follows, which most are at once. On a GPU, which
    would have to be waited for to know that, they are added up over all.
    """
    if a_BSSC.device.type == "cpu":
        return _row_by_row(a_BSSC, b_BSSC)
    if on_triton(a_BSSC):
        from substyle.kernels import color_triton

        total_B = color_triton.difference_total(a_BSSC.contiguous(), b_BSSC.contiguous())
    else:
        total_B = total_reference(a_BSSC, b_BSSC)
    return total_B >= a_BSSC.shape[1:].numel()


def total_reference(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    """Sum of absolute differences of each pair, in plain torch. Shape: (B,) int64."""
    difference_BSSC = torch.maximum(a_BSSC, b_BSSC) - torch.minimum(a_BSSC, b_BSSC)
    return difference_BSSC.flatten(1).sum(1, dtype=torch.int64)


def _row_by_row(a_BSSC: torch.Tensor, b_BSSC: torch.Tensor) -> torch.Tensor:
    a, b = a_BSSC.numpy(), b_BSSC.numpy()  # numpy on one thread: waking torch's would cost more
    enough = a[0].size if len(a) else 0
    total_B = np.zeros(len(a), np.uint64)
    open_N = np.arange(len(a))
    for first in range(_EVERY):
        if not len(open_N):
            break
        some = slice(None) if len(open_N) == len(a) else open_N  # indexing by numbers copies
        x, y = a[some, first::_EVERY], b[some, first::_EVERY]
        difference = np.maximum(x, y)
        difference -= np.minimum(x, y)
        total_B[open_N] += difference.reshape(len(open_N), -1).sum(1, dtype=np.uint32)
        open_N = open_N[total_B[open_N] < enough]
    return torch.from_numpy(total_B >= enough)
