"""Displacement fields for :mod:`substyle.kernels.remap`: (B, 2, S, S) float32, (dx, dy) in pixels.

Where pixels are to be moved at once, take :mod:`substyle.kernels.warp`, which needs no field in memory on a GPU.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from substyle.kernels import philox
from substyle.kernels.banded import Banded, mirrored
from substyle.kernels.workers import for_each_image, scratch

F32 = NDArray[np.float32]
_CPU = torch.device("cpu")


def elastic(
    keys_B: philox.U64, name: str, side: int, amplitude_B: F32, sigma: float, device: torch.device = _CPU
) -> torch.Tensor:
    """Displacement that varies smoothly: uniform noise in [-1, 1), blurred by a Gaussian, times the amplitude.

    The field of ImageNet-C's elastic transform (Hendrycks and Dietterich, 2019): mirrored borders, kernel cut off at
    three standard deviations. Shape: (B, 2, S, S).

    Args:
        name: name of the transformation that draws the field.
        amplitude_B: largest displacement before the blur, in pixels.
        sigma: standard deviation of the blur, in pixels.
    """
    if device.type != "cpu":
        return elastic_reference(keys_B, name, side, amplitude_B, sigma, device)
    blur = _blur(side, sigma)
    out_B2SS = np.empty((len(keys_B), 2, side, side), np.float32)

    def one(i: int) -> None:
        bits = scratch("elastic.bits", (2 * side * side,), np.uint16)
        philox.bits16(keys_B[i], name, bits)
        noise, half = (scratch(f"elastic.{use}", (2, side, side), np.float32) for use in ("noise", "half"))
        noise[...] = bits.reshape(noise.shape)
        out = blur.across(blur.down(noise, half), out_B2SS[i])
        # number q stands for (2 q + 1) / 65536 - 1; as the weights sum to 1, the blur may come first
        np.multiply(out, np.float32(amplitude_B[i] * 2.0 / 65536), out=out)
        np.add(out, np.float32(amplitude_B[i] * (1.0 / 65536 - 1.0)), out=out)

    for_each_image(len(keys_B), one)
    return torch.from_numpy(out_B2SS)


def elastic_reference(
    keys_B: philox.U64, name: str, side: int, amplitude_B: F32, sigma: float, device: torch.device = _CPU
) -> torch.Tensor:
    """:func:`elastic` in plain torch, on any device."""
    bits = philox.bits16_torch(keys_B, name, 2 * side * side, device).view(-1, 1, side, side)
    weights = torch.from_numpy(blur_weights(sigma)).to(device)
    planes = functional.pad((bits + 0.5) * (2.0 / 65536) - 1.0, (len(weights) // 2,) * 4, "reflect")
    planes = functional.conv2d(functional.conv2d(planes, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return planes.view(-1, 2, side, side) * torch.from_numpy(amplitude_B).to(device).view(-1, 1, 1, 1)


def blur_weights(sigma: float) -> F32:
    """Weights of a Gaussian cut off at three standard deviations, of sum 1. Shape: (2 r + 1,)."""
    radius = max(1, int(3.0 * sigma + 0.5))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


@lru_cache(maxsize=4)
def _blur(side: int, sigma: float) -> Banded:
    return Banded(mirrored(blur_weights(sigma), side))


def grid(nodes_B2KK: torch.Tensor, side: int) -> torch.Tensor:
    """Displacement of a grid whose nodes moved, linear between nodes. Shape: (B, 2, K, K) to (B, 2, S, S), pixels."""
    between = _between_nodes(nodes_B2KK.shape[-1], side)
    if nodes_B2KK.device.type != "cpu":
        matrix_SK = torch.from_numpy(between.matrix_OI).to(nodes_B2KK.device)
        return matrix_SK @ nodes_B2KK @ matrix_SK.mT
    nodes = nodes_B2KK.numpy()
    out_B2SS = np.empty((len(nodes), 2, side, side), np.float32)

    def one(i: int) -> None:
        half = scratch("grid.half", (2, side, nodes.shape[-1]), np.float32)
        between.across(between.down(nodes[i], half), out_B2SS[i])

    for_each_image(len(nodes), one)
    return torch.from_numpy(out_B2SS)


@lru_cache(maxsize=4)
def _between_nodes(count: int, side: int) -> Banded:
    """Linear interpolation between nodes spread from the first pixel to the last."""
    at_S1 = np.linspace(0.0, count - 1.0, side)[:, None]
    return Banded(np.maximum(0.0, 1.0 - np.abs(at_S1 - np.arange(count))))


def swirl(side: int, centre_B2: F32, radius_B: F32, strength_B: F32, device: torch.device = _CPU) -> torch.Tensor:
    """Rotation by ``strength * exp(-5 r / (log(2) * radius))`` at distance r from the centre: scikit-image's swirl.

    Shape: (B, 2, S, S).

    Args:
        centre_B2: (B, 2) centres (x, y) in pixels.
        radius_B: distance in pixels at which the rotation has fallen below a thousandth.
        strength_B: rotation at the centre in radians.
    """
    if device.type != "cpu":
        return swirl_reference(side, centre_B2, radius_B, strength_B, device)
    out_B2SS = np.empty((len(centre_B2), 2, side, side), np.float32)
    axis = np.arange(side, dtype=np.float32)

    def one(i: int) -> None:
        dx, dy = axis - centre_B2[i, 0], (axis - centre_B2[i, 1])[:, None]
        angle = np.sqrt(dx * dx + dy * dy)
        angle *= np.float32(-5.0 / (math.log(2.0) * radius_B[i]))
        np.multiply(np.exp(angle, out=angle), strength_B[i], out=angle)
        cos, sin = np.cos(angle), np.sin(angle)
        cos -= 1.0
        np.subtract(cos * dx, sin * dy, out=out_B2SS[i, 0])
        np.add(np.multiply(sin, dx, out=sin), np.multiply(cos, dy, out=cos), out=out_B2SS[i, 1])

    for_each_image(len(centre_B2), one)
    return torch.from_numpy(out_B2SS)


def swirl_reference(
    side: int, centre_B2: F32, radius_B: F32, strength_B: F32, device: torch.device = _CPU
) -> torch.Tensor:
    """:func:`swirl` in plain torch, on any device."""
    centre, radius, strength = (torch.from_numpy(values).to(device) for values in (centre_B2, radius_B, strength_B))
    axis = torch.arange(side, dtype=torch.float32, device=device)
    dx = axis.view(1, 1, -1) - centre[:, 0].view(-1, 1, 1)
    dy = axis.view(1, -1, 1) - centre[:, 1].view(-1, 1, 1)
    decay = (-5.0 / (math.log(2.0) * radius)).view(-1, 1, 1)
    angle = strength.view(-1, 1, 1) * torch.exp(decay * torch.sqrt(dx * dx + dy * dy))
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([dx * cos - dy * sin - dx, dx * sin + dy * cos - dy], dim=1)
