"""Displacement fields for :mod:`substyle.kernels.warp`: (B, 2, S, S) float32, (dx, dy) in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from substyle.kernels import philox
from substyle.kernels.dispatch import for_each_image, scratch

# Resampling and blurring are banded matrices, applied on a CPU as products of small dense blocks. BLAS uses one thread
# for a small product, so images run in parallel; blocks do not depend on the batch, so neither do results. On a GPU,
# ``warp_triton`` computes the 2 to 15 weights per row where they are used.

F32 = NDArray[np.float32]
_BLOCK = 16  # outputs per block; larger blocks multiply more zeros
_PRODUCT = 1 << 17  # maximum multiplications per product; OpenBLAS uses threads from 1 << 18


class Banded:
    """A banded matrix (O, I) that can be applied to planes.

    Args:
        matrix_OI: its values; outputs by inputs.
    """

    def __init__(self, matrix_OI: NDArray[np.float64] | F32) -> None:
        outputs, inputs = matrix_OI.shape
        self.matrix_OI = np.asarray(matrix_OI, np.float32)
        self.blocks: list[tuple[slice, slice, F32, F32]] = []
        spans = []
        for start in range(0, outputs, _BLOCK):
            rows = slice(start, min(start + _BLOCK, outputs))
            (used,) = np.nonzero(self.matrix_OI[rows].any(axis=0))
            first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
            spans.append((rows, first, last + 1 - first))
        width = max((size for _, _, size in spans), default=0)
        for rows, first, _ in spans:  # one width for all, so that BLAS uses the same code path
            left = min(first, inputs - width)
            columns = slice(left, left + width)
            block = np.ascontiguousarray(self.matrix_OI[rows, columns])
            self.blocks.append((rows, columns, block, np.ascontiguousarray(block.T)))

    def down(self, planes_CIW: F32, out_COW: F32) -> F32:
        """Apply the matrix to every column of every plane. Shape: (C, I, W) to (C, O, W)."""
        for part in self._parts(planes_CIW.shape[2]):
            for rows, columns, block, _ in self.blocks:
                np.matmul(block, planes_CIW[:, columns, part], out=out_COW[:, rows, part])
        return out_COW

    def across(self, planes_CHI: F32, out_CHO: F32) -> F32:
        """Apply the matrix to every row of every plane. Shape: (C, H, I) to (C, H, O)."""
        for part in self._parts(planes_CHI.shape[1]):
            for rows, columns, _, turned in self.blocks:
                np.matmul(planes_CHI[:, part, columns], turned, out=out_CHO[:, part, rows])
        return out_CHO

    def _parts(self, length: int) -> Iterator[slice]:
        """Split a length into parts of at most _PRODUCT multiplications by a block."""
        step = max(1, _PRODUCT // self.blocks[0][2].size)
        return (slice(start, start + step) for start in range(0, length, step))


def mirrored(weights_K: F32 | NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Matrix of a correlation with K weights, borders mirrored about the edge pixels. Shape: (side, side)."""
    radius = len(weights_K) // 2
    matrix = np.zeros((side, side))
    at_SK = np.arange(side)[:, None] + np.arange(-radius, radius + 1)
    period = max(2 * (side - 1), 1)
    folded_SK = np.abs((at_SK + side - 1) % period - (side - 1)) if side > 1 else np.zeros_like(at_SK)
    np.add.at(matrix, (np.arange(side)[:, None], folded_SK), weights_K)
    return matrix


_CPU = torch.device("cpu")


def elastic(
    keys_B: philox.U64, name: str, side: int, amplitude_B: F32, sigma: float, device: torch.device = _CPU
) -> torch.Tensor:
    """Smooth random displacement: uniform noise in [-1, 1), blurred by a Gaussian, times the amplitude.

    The field of ImageNet-C's elastic transform (Hendrycks and Dietterich, 2019): mirrored borders, kernel cut off at
    three standard deviations. Shape: (B, 2, S, S).

    Args:
        name: name of the transformation, for the random numbers.
        amplitude_B: maximum displacement before the blur, in pixels.
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
        # integer q represents (2 q + 1) / 65536 - 1; as the weights sum to 1, the blur may come first
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
    """Normalised weights of a Gaussian cut off at three standard deviations. Shape: (2 r + 1,)."""
    radius = max(1, int(3.0 * sigma + 0.5))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum(), dtype=np.float32)


@lru_cache(maxsize=4)
def _blur(side: int, sigma: float) -> Banded:
    return Banded(mirrored(blur_weights(sigma), side))


def grid(nodes_B2KK: torch.Tensor, side: int) -> torch.Tensor:
    """Displacement of a grid with moved nodes, linear between nodes. Shape: (B, 2, K, K) to (B, 2, S, S), pixels."""
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
    """Linear interpolation between nodes spaced evenly from the first pixel to the last."""
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
