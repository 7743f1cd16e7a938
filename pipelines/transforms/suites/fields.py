"""Severities, random fields and filters that several suites share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from substyle.kernels import noise, philox
from substyle.kernels.dispatch import for_each_image, scratch, upload
from substyle.kernels.displacement import Banded, mirrored
from substyle.kernels.noise import F32
from substyle.kernels.tables import normal_quantiles
from substyle.pipelines.transforms.base import Arrays, Choice

Keys = NDArray[np.uint64]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def severities(name: str, *values: float | tuple[float, ...], unit: str = "") -> Choice:
    """A parameter with one value per severity."""
    return Choice(name, values, unit, severity=True)


SEVERITY = Choice("severity", (1, 2, 3, 4, 5), severity=True, within=(1, 5))


def row(table: tuple[tuple[float, ...], ...] | tuple[float, ...], args: Arrays) -> F32:
    """Constants of each image's severity. Shape: (B,) or (B, k) float32."""
    found: F32 = np.asarray(table, np.float32)[args["severity"].astype(np.int64) - 1]
    return found


def per_image(values_B: NDArray[np.floating], device: torch.device) -> torch.Tensor:
    """Values as (B, 1, 1, 1) float32."""
    return upload(np.asarray(values_B, np.float32), device).view(-1, 1, 1, 1)


def constant(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """A few numbers as float32. ``torch.tensor`` would wait for the device."""
    return upload(np.array(values, np.float32), device)


def unit(canvas_BSSC: torch.Tensor) -> torch.Tensor:
    """Levels as float32 in [0, 1]."""
    return canvas_BSSC.float() / 255.0


def pixels(x_BSSC: torch.Tensor) -> torch.Tensor:
    """Values in [0, 1] as uint8, clipped and rounded."""
    return (x_BSSC.clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8)


def plane(side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates (x, y) of pixel centres from the centre, in sides. Shape: (1, 1, S, 1), (1, S, 1, 1)."""
    line = (torch.arange(side, device=device) + 0.5) / side - 0.5
    return line.view(1, 1, -1, 1), line.view(1, -1, 1, 1)


def along(angle_B: F32, side: int, device: torch.device) -> torch.Tensor:
    """Coordinate along a direction (degrees from x towards y) from the centre, in sides. Shape: (B, S, S, 1)."""
    x, y = plane(side, device)
    radians_B = np.radians(np.asarray(angle_B, np.float64))
    return x * per_image(np.cos(radians_B), device) + y * per_image(np.sin(radians_B), device)


def one_by_one(device: torch.device) -> bool:
    """Whether images are computed one by one. Elsewhere, launches do not grow with the batch."""
    return device.type == "cpu"


def bits(keys_B: Keys, name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """16-bit random numbers, int32. Shape: (B, *shape)."""
    if not one_by_one(device):
        return noise.bits16(keys_B, name, math.prod(shape), device).view(len(keys_B), *shape)
    return torch.from_numpy(_on_cpu(keys_B, name, math.prod(shape)).astype(np.int32)).view(len(keys_B), *shape)


def _on_cpu(keys_B: Keys, name: str, count: int) -> NDArray[np.uint16]:
    out = np.empty((len(keys_B), count), np.uint16)
    for_each_image(len(keys_B), lambda i: philox.bits16(keys_B[i], name, out[i]))
    return out


@lru_cache(maxsize=4)
def _quantiles(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(normal_quantiles().astype(np.float32)).to(device)


def normal(keys_B: Keys, name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Standard normal numbers. Shape: (B, *shape) float32."""
    table = _quantiles(device)
    if not one_by_one(device):
        return table[bits(keys_B, name, shape, device)]
    drawn = np.take(table.numpy(), _on_cpu(keys_B, name, math.prod(shape)), mode="wrap")  # bounds need no check
    return torch.from_numpy(drawn).view(len(keys_B), *shape)


def product(a_BMK: torch.Tensor, b_BKN: torch.Tensor) -> torch.Tensor:
    """Matrix product of each image, which does not depend on the others. Shape: (B, M, N) float32.

    On a CPU, images are computed one by one. On a GPU, the order of a sum may depend on the batch; in float64, its
    error is lost when the sum is rounded to float32.
    """
    if one_by_one(a_BMK.device):
        return torch.stack([a @ b for a, b in zip(a_BMK, b_BKN, strict=True)])
    return (a_BMK.double() @ b_BKN.double()).float()


@lru_cache(maxsize=64)
def _gaussian(side: int, sigma: float) -> Banded:
    """Gaussian blur cut at four sigma, mirrored at the borders."""
    radius = max(int(4.0 * sigma + 0.5), 1)
    weight_K = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return Banded(mirrored(weight_K / weight_K.sum(), side))


def filtered(
    x_BSSC: torch.Tensor, banded: Callable[[int, float], Banded], value_B: F32, *, levels: bool = False
) -> torch.Tensor:
    """Apply a matrix to the columns of each image, then to its rows. Shape: (B, S, S, C) float32.

    Args:
        banded: the (S, S) matrix for S and an image's value.
        levels: round to whole levels after each pass.
    """
    side = x_BSSC.shape[1]
    if not one_by_one(x_BSSC.device):
        known, which_B = np.unique(value_B, return_inverse=True)
        table = upload(np.stack([banded(side, value).matrix_OI for value in known.tolist()]), x_BSSC.device)
        matrix_BSS = table[upload(which_B, x_BSSC.device)]
        for _ in range(2):
            x_BSSC = product(matrix_BSS, x_BSSC.flatten(2)).view(x_BSSC.shape).transpose(1, 2)
            x_BSSC = (x_BSSC + 0.5).floor() if levels else x_BSSC
        return x_BSSC
    planes_BCSS = x_BSSC.permute(0, 3, 1, 2).numpy()
    out_BCSS = np.empty(planes_BCSS.shape, np.float32)

    def one(i: int) -> None:
        matrix, half = banded(side, float(value_B[i])), scratch("fields.half", planes_BCSS.shape[1:], np.float32)
        matrix.down(np.ascontiguousarray(planes_BCSS[i]), half)
        matrix.across(np.floor(half + np.float32(0.5)) if levels else half, out_BCSS[i])

    for_each_image(len(planes_BCSS), one)
    out_BSSC = torch.from_numpy(out_BCSS).permute(0, 2, 3, 1)
    return (out_BSSC + 0.5).floor() if levels else out_BSSC


def blurred(x_BSSC: torch.Tensor, sigma_B: F32) -> torch.Tensor:
    """Gaussian blur, cut at four sigma; borders are mirrored. Shape: (B, S, S, C) float32."""
    return filtered(x_BSSC, _gaussian, sigma_B)


def picked(
    x_NHWC: torch.Tensor, row_BSS: torch.Tensor, column_BSS: torch.Tensor, image_B: NDArray[np.int64]
) -> torch.Tensor:
    """Pixels of images N at rows and columns, int32 that broadcast. Shape: (B, S, S, C)."""
    kind = np.int32 if math.prod(x_NHWC.shape[:3]) < 1 << 31 else np.int64  # a CPU adds int32 many times as fast
    image_B11 = upload(image_B.astype(kind), x_NHWC.device).view(-1, 1, 1)
    at_BSS = (image_B11 * x_NHWC.shape[1] + row_BSS) * x_NHWC.shape[2] + column_BSS
    return x_NHWC.reshape(-1, x_NHWC.shape[3]).index_select(0, at_BSS.flatten()).view(*at_BSS.shape, -1)


def one_sided(radius: int, sigma: float, count: int) -> tuple[float, ...]:
    """Weights of :func:`streaked`, with zeros up to a count."""
    weight_K = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    return (*(weight_K / weight_K.sum()).tolist(), *[0.0] * (count - len(weight_K)))


def streaked(field_BSS: torch.Tensor, weight_BK: F32, angle_B: F32) -> torch.Tensor:
    """Blur of fields along a line of K whole pixels, borders repeated. Shape: (B, S, S)."""
    (batch, side, _), device, count = field_BSS.shape, field_BSS.device, weight_BK.shape[1]
    radians_B = np.radians(angle_B.astype(np.float64))
    dx_KB, dy_KB = (np.ceil(np.arange(count)[:, None] * f(radians_B) - 0.5).astype(np.int64) for f in (np.cos, np.sin))
    out_BSS = torch.zeros_like(field_BSS)
    if one_by_one(device):  # slices are copied many times as fast as picked pixels
        wide = pad(field_BSS[:, None], (count,) * 4, mode="replicate")[:, 0]
        for i, weight_K in enumerate(weight_BK.tolist()):
            for weight, dx, dy in zip(weight_K, dx_KB[:, i].tolist(), dy_KB[:, i].tolist(), strict=True):
                if weight:
                    out_BSS[i] += weight * wide[i, count + dy : count + dy + side, count + dx : count + dx + side]
        return out_BSS
    line_S, weight_KB11 = torch.arange(side, device=device), upload(weight_BK.T, device)[..., None, None]
    x_KBS, y_KBS = ((upload(d, device)[..., None] + line_S).clamp(0, side - 1) for d in (dx_KB, dy_KB))
    image_B11 = torch.arange(batch, device=device).view(-1, 1, 1)
    for k in range(count):
        out_BSS.addcmul_(weight_KB11[k], field_BSS[image_B11, y_KBS[k, :, :, None], x_KBS[k, :, None]])
    return out_BSS


def plasma(keys_B: Keys, name: str, side: int, decay_B: F32, device: torch.device) -> torch.Tensor:
    """Fractal clouds in [0, 1] by the diamond-square algorithm on a torus. Shape: (B, S, S) float32.

    Args:
        decay_B: by how much the random part shrinks from one scale to the next.
    """
    scales = max(side - 1, 1).bit_length()
    size = 1 << scales
    amplitudes = accumulate(repeat(decay_B, scales - 1), np.divide, initial=np.ones_like(decay_B))
    amplitude_LB = upload(np.stack(list(amplitudes)), device)
    field = bits(keys_B, name, (size, size), device).float() * (2.0 / 65535.0) - 1.0  # uniform in [-1, 1]
    amplitude = torch.empty_like(field)
    for scale in reversed(range(scales)):
        step = size >> scale + 1
        amplitude[:, ::step, ::step] = amplitude_LB[scale].view(-1, 1, 1)
    field *= amplitude
    field[:, 0, 0] = 0.0
    for scale in range(scales):
        step = size >> scale
        corner = field[:, ::step, ::step]
        two = corner + corner.roll(-1, 1)
        between = slice(step // 2, None, step)
        centre = field[:, between, between].add_(two + two.roll(-1, 2), alpha=0.25)
        for axis, edge in ((1, field[:, ::step, between]), (2, field[:, between, ::step])):
            edge.add_(centre + centre.roll(1, axis) + corner + corner.roll(-1, 3 - axis), alpha=0.25)
    field -= field.amin((1, 2), keepdim=True)
    return (field / field.amax((1, 2), keepdim=True).clamp_min(1e-12))[:, :side, :side]
