"""Warps: a displacement field and the sampling at its places in one call.

On a CPU, and on a device without Triton, that is ``remap`` after ``displacement``. On a GPU the places are computed
where they are sampled, and no field goes through memory.
"""

from __future__ import annotations

import torch

from substyle.kernels import displacement, philox
from substyle.kernels.dispatch import on_triton
from substyle.kernels.displacement import F32
from substyle.kernels.remap import remap


def elastic(canvas_BSSC: torch.Tensor, keys_B: philox.U64, name: str, amplitude_B: F32, sigma: float) -> torch.Tensor:
    """Move every pixel by a smooth random displacement, :func:`displacement.elastic`. Shape: (B, S, S, C) uint8."""
    side = canvas_BSSC.shape[1]
    # a blur wider than the picture mirrors more than once, which only the other path does
    if on_triton(canvas_BSSC) and displacement.blur_weights(sigma).size // 2 < side:
        from substyle.kernels import warp_triton

        return warp_triton.elastic(canvas_BSSC.contiguous(), keys_B, name, amplitude_B, sigma)
    return remap(canvas_BSSC, displacement.elastic(keys_B, name, side, amplitude_B, sigma, canvas_BSSC.device))


def grid(canvas_BSSC: torch.Tensor, nodes_B2KK: torch.Tensor) -> torch.Tensor:
    """Move the nodes of a grid and the picture with them, :func:`displacement.grid`. Shape: (B, S, S, C) uint8.

    Args:
        nodes_B2KK: (B, 2, K, K) float32 displacement of the nodes in pixels, on the canvas's device.
    """
    if on_triton(canvas_BSSC):
        from substyle.kernels import warp_triton

        return warp_triton.grid(canvas_BSSC.contiguous(), nodes_B2KK.contiguous())
    return remap(canvas_BSSC, displacement.grid(nodes_B2KK, canvas_BSSC.shape[1]))


def swirl(canvas_BSSC: torch.Tensor, centre_B2: F32, radius_B: F32, strength_B: F32) -> torch.Tensor:
    """Twist the picture about a point, :func:`displacement.swirl`. Shape: (B, S, S, C) uint8."""
    if on_triton(canvas_BSSC):
        from substyle.kernels import warp_triton

        return warp_triton.swirl(canvas_BSSC.contiguous(), centre_B2, radius_B, strength_B)
    side, device = canvas_BSSC.shape[1], canvas_BSSC.device
    return remap(canvas_BSSC, displacement.swirl(side, centre_B2, radius_B, strength_B, device))
