"""Pull every pixel from a displaced place: bilinear, borders mirrored about the edge pixels' centres.

A displacement field (B, 2, S, S) holds (dx, dy) in pixels: the output at (x, y) is the input at (x + dx, y + dy).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from substyle.kernels.dispatch import on_triton
from substyle.kernels.workers import for_each_image, scratch


def remap(canvas_BSSC: torch.Tensor, shift_B2SS: torch.Tensor) -> torch.Tensor:
    """Sample the canvas at displaced places. Shape: (B, S, S, C) uint8 in and out.

    Args:
        shift_B2SS: (B, 2, S, S) float32 displacement (dx, dy) in pixels, on the canvas's device.
    """
    if canvas_BSSC.device.type != "cpu":
        if on_triton(canvas_BSSC):
            from substyle.kernels import remap_triton

            return remap_triton.remap(canvas_BSSC.contiguous(), shift_B2SS.contiguous())
        return remap_reference(canvas_BSSC, shift_B2SS)
    out_BSSC = torch.empty(canvas_BSSC.shape, dtype=torch.uint8)
    source, shift, target = canvas_BSSC.numpy(), shift_B2SS.numpy(), out_BSSC.numpy()
    height, width, channels = source.shape[1:]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    step_x, step_y = _steps(height, width)

    def one(i: int) -> None:
        grid = scratch("remap.grid", (height, width, 2), np.float32)
        along = scratch("remap.along", (height, width), np.float32)
        for axis, (position, step) in enumerate(((x, step_x), (y, step_y))):
            np.add(shift[i, axis], position, out=along)
            np.multiply(along, np.float32(step), out=along)
            np.subtract(along, 1.0, out=grid[..., axis])
        planes = scratch("remap.planes", (channels, height, width), np.float32)
        for channel in range(channels):  # a third of the time of a transposed copy
            planes[channel] = source[i, :, :, channel]
        # grid_sample threads over images only, so that a batch of one stays on this thread
        moved = _sample(torch.from_numpy(planes)[None], torch.from_numpy(grid)[None]).numpy()[0]
        moved += 0.5
        for channel in range(channels):
            target[i, :, :, channel] = moved[channel]

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
    """Pixels in the units of grid_sample, in which -1 and 1 are the centres of the edge pixels."""
    return 2.0 / max(width - 1, 1), 2.0 / max(height - 1, 1)


def _sample(planes_BCSS: torch.Tensor, grid_BSS2: torch.Tensor) -> torch.Tensor:
    return functional.grid_sample(planes_BCSS, grid_BSS2, "bilinear", "reflection", align_corners=True)
