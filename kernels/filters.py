"""Correlation of each image with its own small kernel. Borders are mirrored about the centres of the edge pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from substyle.kernels.dispatch import on_triton, upload


def filtered(canvas_BSSC: torch.Tensor, kernel_BKL: NDArray[np.float32]) -> torch.Tensor:
    """Correlate each image with its kernel. Shape: (B, S, S, C) uint8 in and out.

    Args:
        kernel_BKL: weights of at least 0 and sum 1; K and L are odd.
    """
    if on_triton(canvas_BSSC):
        from substyle.kernels import filters_triton

        return filters_triton.filtered(canvas_BSSC.contiguous(), kernel_BKL)
    return filtered_reference(canvas_BSSC, kernel_BKL)


def filtered_reference(canvas_BSSC: torch.Tensor, kernel_BKL: NDArray[np.float32]) -> torch.Tensor:
    """:func:`filtered` in plain torch, on any device."""
    if not canvas_BSSC.numel():
        return canvas_BSSC.clone()
    device, (batch, rows, columns) = canvas_BSSC.device, kernel_BKL.shape
    y, x = (_mirrored(side, n // 2, device) for side, n in zip(canvas_BSSC.shape[1:3], (rows, columns), strict=True))
    planes_CBHW = canvas_BSSC.permute(3, 0, 1, 2)[:, :, y[:, None], x].float()
    made_CBSS = functional.conv2d(planes_CBHW, upload(kernel_BKL, device)[:, None], groups=batch)
    return (made_CBSS + 0.5).clamp_(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _mirrored(side: int, border: int, device: torch.device) -> torch.Tensor:
    """Indices of a line of pixels with mirrored borders."""
    at, last = torch.arange(-border, side + border, device=device), side - 1
    return last - (last - at.abs() % max(2 * last, 1)).abs()
