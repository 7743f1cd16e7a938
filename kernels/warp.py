"""Warps: displacement and sampling in one call; and zoom blur.

On a GPU with Triton, coordinates are computed where they are sampled. Elsewhere, ``remap`` samples at a field from
:mod:`substyle.kernels.displacement`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from substyle.kernels import displacement, philox
from substyle.kernels.dispatch import for_each_image, on_triton, scratch
from substyle.kernels.displacement import F32, Banded
from substyle.kernels.tables import ZOOM_STAGES


def remap(canvas_BSSC: torch.Tensor, shift_B2SS: torch.Tensor) -> torch.Tensor:
    """Sample the canvas at displaced coordinates, bilinearly. Shape: (B, S, S, C) uint8 in and out.

    The output at (x, y) is the input at (x + dx, y + dy). Borders are mirrored about the centres of the edge pixels.

    Args:
        shift_B2SS: (B, 2, S, S) float32 displacement (dx, dy) in pixels, on the canvas's device.
    """
    if canvas_BSSC.device.type != "cpu":
        if on_triton(canvas_BSSC):
            from substyle.kernels import warp_triton

            return warp_triton.remap(canvas_BSSC.contiguous(), shift_B2SS.contiguous())
        return remap_reference(canvas_BSSC, shift_B2SS)
    out_BSSC = torch.empty(canvas_BSSC.shape, dtype=torch.uint8)
    source, shift, target = canvas_BSSC.numpy(), shift_B2SS.numpy(), out_BSSC.numpy()
    height, width, channels = source.shape[1:]
    position_2SS = np.indices((height, width), np.float32)[::-1]
    step_211 = np.array(_steps(height, width), np.float32)[:, None, None]

    def one(i: int) -> None:
        grid_1SS2 = scratch("remap.grid", (1, height, width, 2), np.float32)
        along_2SS = scratch("remap.along", (2, height, width), np.float32)
        np.add(shift[i], position_2SS, out=along_2SS)
        np.multiply(along_2SS, step_211, out=along_2SS)
        np.subtract(along_2SS, 1.0, out=grid_1SS2[0].transpose(2, 0, 1))
        planes_1CSS = scratch("remap.planes", (1, channels, height, width), np.float32)
        planes_1CSS[0] = source[i].transpose(2, 0, 1)
        # grid_sample parallelises over images only: a batch of one stays on this thread
        moved_1CSS = _sample(torch.from_numpy(planes_1CSS), torch.from_numpy(grid_1SS2)).numpy()
        np.add(moved_1CSS[0], 0.5, out=target[i].transpose(2, 0, 1), casting="unsafe")

    for_each_image(len(source), one)
    return out_BSSC


def remap_reference(canvas_BSSC: torch.Tensor, shift_B2SS: torch.Tensor) -> torch.Tensor:
    """:func:`remap` in plain torch, on any device."""
    height, width = canvas_BSSC.shape[1:3]
    y, x = torch.meshgrid(*(torch.arange(n, device=canvas_BSSC.device) for n in (height, width)), indexing="ij")
    step_x, step_y = _steps(height, width)
    grid = torch.stack([(shift_B2SS[:, 0] + x) * step_x - 1.0, (shift_B2SS[:, 1] + y) * step_y - 1.0], dim=-1)
    moved_BCSS = _sample(canvas_BSSC.permute(0, 3, 1, 2).contiguous().float(), grid)
    return (moved_BCSS + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _steps(height: int, width: int) -> tuple[float, float]:
    """One pixel in units of grid_sample, where -1 and 1 are the centres of the edge pixels."""
    return 2.0 / max(width - 1, 1), 2.0 / max(height - 1, 1)


def _sample(planes_BCSS: torch.Tensor, grid_BSS2: torch.Tensor) -> torch.Tensor:
    return functional.grid_sample(planes_BCSS, grid_BSS2, "bilinear", "reflection", align_corners=True)


def elastic(canvas_BSSC: torch.Tensor, keys_B: philox.U64, name: str, amplitude_B: F32, sigma: float) -> torch.Tensor:
    """Move every pixel by a smooth random displacement, :func:`displacement.elastic`. Shape: (B, S, S, C) uint8."""
    side = canvas_BSSC.shape[1]
    # a blur wider than the image mirrors more than once, which the Triton kernel does not support
    if on_triton(canvas_BSSC) and displacement.blur_weights(sigma).size // 2 < side:
        from substyle.kernels import warp_triton

        return warp_triton.elastic(canvas_BSSC.contiguous(), keys_B, name, amplitude_B, sigma)
    return remap(canvas_BSSC, displacement.elastic(keys_B, name, side, amplitude_B, sigma, canvas_BSSC.device))


def grid(canvas_BSSC: torch.Tensor, nodes_B2KK: torch.Tensor) -> torch.Tensor:
    """Move the nodes of a grid and the image with them, :func:`displacement.grid`. Shape: (B, S, S, C) uint8.

    Args:
        nodes_B2KK: (B, 2, K, K) float32 displacement of the nodes in pixels, on the canvas's device.
    """
    if on_triton(canvas_BSSC):
        from substyle.kernels import warp_triton

        return warp_triton.grid(canvas_BSSC.contiguous(), nodes_B2KK.contiguous())
    return remap(canvas_BSSC, displacement.grid(nodes_B2KK, canvas_BSSC.shape[1]))


def swirl(canvas_BSSC: torch.Tensor, centre_B2: F32, radius_B: F32, strength_B: F32) -> torch.Tensor:
    """Twist the image about a point, :func:`displacement.swirl`. Shape: (B, S, S, C) uint8."""
    if on_triton(canvas_BSSC):
        from substyle.kernels import warp_triton

        return warp_triton.swirl(canvas_BSSC.contiguous(), centre_B2, radius_B, strength_B)
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    return remap(canvas_BSSC, displacement.swirl(side, centre_B2, radius_B, strength_B, device))


def enlargement(side: int, ratio: float) -> NDArray[np.float64]:
    """Matrix that enlarges a line of pixels about its centre with linear interpolation. Shape: (S, S)."""
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
    step = zoom ** (1.0 / (2**ZOOM_STAGES - 1))
    return tuple(Banded(enlargement(side, step ** (2**stage))) for stage in range(ZOOM_STAGES))


def zoom_blur(canvas_BSSC: torch.Tensor, zoom_B: F32) -> torch.Tensor:
    """Mean of 16 enlargements about the centre, from 1 to ``zoom`` in equal ratios. Shape: (B, S, S, C) uint8.

    Computed in four stages: each adds to the sum its own enlargement, by twice the (logarithmic) step of the previous
    stage. On a CPU: DALI computes the stages on a GPU.

    Args:
        zoom_B: largest enlargement of each image.
    """
    out_BSSC = torch.empty(canvas_BSSC.shape, dtype=torch.uint8)
    source, target = canvas_BSSC.numpy(), out_BSSC.numpy()
    side, channels = source.shape[1], source.shape[3]

    def one(i: int) -> None:
        total, half, moved = (
            scratch(f"zoom.{use}", (channels, side, side), np.float32) for use in ("total", "half", "moved")
        )
        total[...] = source[i].transpose(2, 0, 1)
        for stage in _stages(side, float(zoom_B[i])):
            np.add(total, stage.across(stage.down(total, half), moved), out=total)
        np.multiply(total, np.float32(1.0 / 2**ZOOM_STAGES), out=total)
        np.add(total, np.float32(0.5), out=target[i].transpose(2, 0, 1), casting="unsafe")

    for_each_image(len(source), one)
    return out_BSSC
