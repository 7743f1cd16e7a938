"""Zoom blur: the mean of a picture's enlargements about its centre, as through a lens that zooms while it exposes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.banded import Banded
from substyle.kernels.dispatch import on_triton
from substyle.kernels.displacement import F32
from substyle.kernels.tables import STAGES
from substyle.kernels.workers import for_each_image, scratch


def enlargement(side: int, ratio: float) -> NDArray[np.float64]:
    """The matrix that enlarges a line of pixels about its middle, linear between pixel centres. Shape: (S, S)."""
    at_S = np.clip((np.arange(side) + 0.5 - side / 2) / ratio + side / 2 - 0.5, 0, side - 1)
    low_S = np.clip(np.floor(at_S).astype(np.int64), 0, max(side - 2, 0))
    share_S = at_S - low_S
    matrix = np.zeros((side, side))
    line = np.arange(side)
    matrix[line, low_S] += 1.0 - share_S
    matrix[line, np.minimum(low_S + 1, side - 1)] += share_S
    return matrix


@lru_cache(maxsize=64)
def _stages(side: int, zoom: float) -> tuple[Banded, ...]:
    step = zoom ** (1.0 / (2**STAGES - 1))
    return tuple(Banded(enlargement(side, step ** (2**stage))) for stage in range(STAGES))


def zoom_blur(canvas_BSSC: torch.Tensor, zoom_B: F32) -> torch.Tensor:
    """Mean of 16 enlargements about the centre, from 1 to ``zoom`` in equal ratios. Shape: (B, S, S, C) uint8.

    Four stages do it: each adds to the sum so far its own enlargement, by twice the (logarithmic) step of the stage
    before.

    Args:
        zoom_B: the largest enlargement of each image.
    """
    if canvas_BSSC.device.type != "cpu":
        if on_triton(canvas_BSSC):
            from substyle.kernels import zoom_triton

            return zoom_triton.zoom_blur(canvas_BSSC.contiguous(), zoom_B)
        return zoom_blur_reference(canvas_BSSC, zoom_B)
    out_BSSC = torch.empty(canvas_BSSC.shape, dtype=torch.uint8)
    source, target = canvas_BSSC.numpy(), out_BSSC.numpy()
    side, channels = source.shape[1], source.shape[3]

    def one(i: int) -> None:
        total, half, moved = (
            scratch(f"zoom.{use}", (channels, side, side), np.float32) for use in ("total", "half", "moved")
        )
        for channel in range(channels):
            total[channel] = source[i, :, :, channel]
        for stage in _stages(side, float(zoom_B[i])):
            np.add(total, stage.across(stage.down(total, half), moved), out=total)
        np.multiply(total, np.float32(1.0 / 2**STAGES), out=total)
        np.add(total, np.float32(0.5), out=total)
        for channel in range(channels):
            target[i, :, :, channel] = total[channel]

    for_each_image(len(source), one)
    return out_BSSC


def zoom_blur_reference(canvas_BSSC: torch.Tensor, zoom_B: F32) -> torch.Tensor:
    """:func:`zoom_blur` in plain torch, on any device."""
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    total_BCSS: torch.Tensor = canvas_BSSC.permute(0, 3, 1, 2).float()
    for stage in range(STAGES):
        steps = [float(zoom) ** (2**stage / (2**STAGES - 1)) for zoom in zoom_B]
        matrices = np.reshape([enlargement(side, step) for step in steps], (-1, 1, side, side))
        matrix_B1SS = torch.from_numpy(matrices).float().to(device)
        total_BCSS = total_BCSS + matrix_B1SS @ total_BCSS @ matrix_B1SS.mT
    rounded: torch.Tensor = (total_BCSS / 2**STAGES + 0.5).to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous()
