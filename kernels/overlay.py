"""Blend a colour into an image where an affinely warped page of a pattern covers it.

On a CPU, the suite uses DALI, which warps pages faster; results are equal up to rounding. On a GPU, all pages stay on
the device and are selected by index, so no page is copied per image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.dispatch import on_triton, upload
from substyle.kernels.tables import WEIGHT_SHIFT

F32 = NDArray[np.float32]


def overlay(
    canvas_BSS3: torch.Tensor,
    pages_NPP: torch.Tensor,
    page_B: NDArray[np.int64],
    matrix_B23: F32,
    colour_B3: NDArray[np.int16],
    opacity_B: F32,
) -> torch.Tensor:
    """Blend a colour into each image. Shape: (B, S, S, 3) uint8 in and out.

    Args:
        pages_NPP: (N, P, P) uint8 coverage, on the canvas's device; edges are replicated.
        page_B: index of each image's page.
        matrix_B23: from px of the canvas to px of the page, whose first pixel spans 0 to 1; pages are sampled
            bilinearly between pixel centres.
        colour_B3: red, green and blue in levels.
        opacity_B: weight in 128ths per level of coverage.
    """
    if on_triton(canvas_BSS3):
        from substyle.kernels import overlay_triton

        return overlay_triton.overlay(canvas_BSS3.contiguous(), pages_NPP, page_B, matrix_B23, colour_B3, opacity_B)
    return overlay_reference(canvas_BSS3, pages_NPP, page_B, matrix_B23, colour_B3, opacity_B)


def overlay_reference(
    canvas_BSS3: torch.Tensor,
    pages_NPP: torch.Tensor,
    page_B: NDArray[np.int64],
    matrix_B23: F32,
    colour_B3: NDArray[np.int16],
    opacity_B: F32,
) -> torch.Tensor:
    """:func:`overlay` in plain torch, on any device."""
    device, (height, width), last = canvas_BSS3.device, canvas_BSS3.shape[1:3], pages_NPP.shape[1] - 1
    page_B11 = upload(page_B, device).view(-1, 1, 1)
    matrix_B23_ = upload(matrix_B23, device)
    y = torch.arange(height, device=device).view(1, -1, 1) + 0.5
    x = torch.arange(width, device=device).view(1, 1, -1) + 0.5

    def along(row: int) -> torch.Tensor:
        a, b, c = (matrix_B23_[:, row, i].view(-1, 1, 1) for i in range(3))
        return (a * x + b * y + c - 0.5).clamp(0, last)

    u_BSS, v_BSS = along(0), along(1)
    left, top = u_BSS.floor().long(), v_BSS.floor().long()
    right, bottom = (left + 1).clamp(max=last), (top + 1).clamp(max=last)
    across, down = u_BSS - left, v_BSS - top
    a, b, c, d = (
        pages_NPP[page_B11, v, u].float() for v, u in ((top, left), (top, right), (bottom, left), (bottom, right))
    )
    upper, lower = a + across * (b - a), c + across * (d - c)
    coverage = (upper + down * (lower - upper) + 0.5).floor()
    weight = (coverage * upload(opacity_B, device).view(-1, 1, 1) + 0.5).floor().clamp(0, 255)
    colour_B113 = upload(colour_B3, device).int().view(-1, 1, 1, 3)
    level = canvas_BSS3.int()
    mixed = level + (((colour_B113 - level) * weight.int()[..., None]) >> WEIGHT_SHIFT)
    return mixed.clamp(0, 255).to(torch.uint8)
