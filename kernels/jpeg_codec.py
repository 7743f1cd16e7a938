"""JPEG compression artefacts (baseline, 4:2:0 chroma) in torch, bit-exact with libjpeg.

Computes the lossy steps and their inverses: YCbCr conversion, 2 x 2 chroma averages, 8 x 8 DCT and quantisation;
lossless Huffman coding is omitted. Every step is libjpeg 6b's in integers (``jccolor``, ``jcsample``, ``jfdctint``,
``jidctint``, ``jdsample`` with smooth upsampling, ``jdcolor``), with the tables of ISO/IEC 10918-1 annex K, scaled by
quality as in libjpeg.

Used on a GPU, where DALI's operator works in float32 and repeats chroma: 1.7 levels from libjpeg on average, up to 30.
On a CPU, DALI's operator gives the pixels of libjpeg.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from substyle.kernels.dispatch import upload

BLOCK, UNIT = 8, 16  # px, side of a block and of an MCU: 2 x 2 blocks of luma, one of each chroma
_FIXED = 13  # fractional bits of the DCT constants
_PASS = 2  # fractional bits kept between the passes of a DCT
_SCALE = 16  # fractional bits of the colour constants

LUMA_TABLE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMA_TABLE = np.full((8, 8), 99)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def tables(quality: NDArray[np.int32]) -> NDArray[np.float64]:
    """Quantisation tables of luma and chroma, as ``jpeg_quality_scaling``. Shape: (B,) in 1 to 100 to (B, 2, 8, 8)."""
    wanted_B = np.clip(quality.astype(np.int64), 1, 100)
    percent_B = np.where(wanted_B < 50, 5000 // wanted_B, 200 - 2 * wanted_B)
    both = np.stack([LUMA_TABLE, CHROMA_TABLE])
    return np.asarray(np.clip((both * percent_B[:, None, None, None] + 50) // 100, 1, 255), np.float64)


@lru_cache(maxsize=1)
def forward_matrix() -> NDArray[np.float64]:
    """Matrix of ``jfdctint`` along a line, in units of 2 ** -13: coefficients by samples. Shape: (8, 8)."""
    return _through(_forward)


@lru_cache(maxsize=1)
def inverse_matrix() -> NDArray[np.float64]:
    """Matrix of ``jidctint`` along a line, in units of 2 ** -13: samples by coefficients. Shape: (8, 8)."""
    return _through(_inverse)


def _through(lines: Callable[[list[int]], list[int]]) -> NDArray[np.float64]:
    return np.array([lines([int(i == j) for i in range(8)]) for j in range(8)], np.float64).T


_C = {n: round(float(n) * (1 << _FIXED)) for n in (
    "0.298631336", "0.390180644", "0.541196100", "0.765366865", "0.899976223", "1.175875602", "1.501321110",
    "1.847759065", "1.961570560", "2.053119869", "2.562915447", "3.072711026",
)}  # fmt: skip


def _odd(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    """Odd part of both transforms (Loeffler, Ligtenberg and Moschytz, 1989)."""
    z1, z2, z3, z4 = a + d, b + c, a + c, b + d
    z5 = (z3 + z4) * _C["1.175875602"]
    a, b = a * _C["0.298631336"], b * _C["2.053119869"]
    c, d = c * _C["3.072711026"], d * _C["1.501321110"]
    z1, z2 = -z1 * _C["0.899976223"], -z2 * _C["2.562915447"]
    z3, z4 = -z3 * _C["1.961570560"] + z5, -z4 * _C["0.390180644"] + z5
    return a + z1 + z3, b + z2 + z4, c + z2 + z3, d + z1 + z4


def _forward(x: list[int]) -> list[int]:
    s = [x[i] + x[7 - i] for i in range(4)]
    d = [x[i] - x[7 - i] for i in range(4)]
    t10, t13, t11, t12 = s[0] + s[3], s[0] - s[3], s[1] + s[2], s[1] - s[2]
    z1 = (t12 + t13) * _C["0.541196100"]
    o7, o5, o3, o1 = _odd(d[3], d[2], d[1], d[0])
    one = 1 << _FIXED
    even = [(t10 + t11) * one, z1 + t13 * _C["0.765366865"], (t10 - t11) * one, z1 - t12 * _C["1.847759065"]]
    return [even[0], o1, even[1], o3, even[2], o5, even[3], o7]


def _inverse(x: list[int]) -> list[int]:
    z1 = (x[2] + x[6]) * _C["0.541196100"]
    t2, t3 = z1 - x[6] * _C["1.847759065"], z1 + x[2] * _C["0.765366865"]
    t0, t1 = (x[0] + x[4]) << _FIXED, (x[0] - x[4]) << _FIXED
    even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3]
    o0, o1, o2, o3 = _odd(x[7], x[5], x[3], x[1])
    odd = [o3, o2, o1, o0]
    return [even[i] + odd[i] for i in range(4)] + [even[i] - odd[i] for i in reversed(range(4))]


def compressed(canvas_BSS3: torch.Tensor, quality_B: NDArray[np.int32]) -> torch.Tensor:
    """Apply JPEG compression to each image. Shape: (B, S, S, 3) uint8 in and out, on any device.

    Args:
        quality_B: libjpeg quality of each image, 1 (lowest) to 100.
    """
    height, width = canvas_BSS3.shape[1:3]
    if not canvas_BSS3.numel():
        return canvas_BSS3.clone()
    table_B2 = upload(tables(quality_B), canvas_BSS3.device)
    red, green, blue = (canvas_BSS3[..., i].int() for i in range(3))
    luma = _descaled(_fixed(0.29900) * red + _fixed(0.58700) * green + _fixed(0.11400) * blue, _SCALE)
    # a half is rounded down, so that the maximum chroma is 255
    offset = (128 << _SCALE) + (1 << (_SCALE - 1)) - 1
    blueness = (-_fixed(0.16874) * red - _fixed(0.33126) * green + _fixed(0.50000) * blue + offset) >> _SCALE
    redness = (_fixed(0.50000) * red - _fixed(0.41869) * green - _fixed(0.08131) * blue + offset) >> _SCALE
    luma = _coded(_extended(luma, UNIT, UNIT), table_B2[:, 0])[:, :height, :width]
    chroma = [_enlarged(_coded(_halved(plane), table_B2[:, 1]), height, width) - 128 for plane in (blueness, redness)]
    green_less = (-_fixed(0.34414) * chroma[0] - _fixed(0.71414) * chroma[1] + (1 << (_SCALE - 1))) >> _SCALE
    mixed = torch.stack([
        luma + _descaled(_fixed(1.40200) * chroma[1], _SCALE),
        luma + green_less,
        luma + _descaled(_fixed(1.77200) * chroma[0], _SCALE),
    ], dim=-1)  # fmt: skip
    return mixed.clamp_(0, 255).to(torch.uint8)


def _fixed(value: float) -> int:
    return int(value * (1 << _SCALE) + 0.5)


def _descaled(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x + (1 << (bits - 1))) >> bits


def _extended(plane_BHW: torch.Tensor, lines: int, columns: int) -> torch.Tensor:
    """Replicate edges up to a multiple of so many lines and columns."""
    height, width = plane_BHW.shape[1:]
    missing = (0, -width % columns, 0, -height % lines)
    return functional.pad(plane_BHW.double(), missing, "replicate").int() if any(missing) else plane_BHW


def _halved(plane_BHW: torch.Tensor) -> torch.Tensor:
    """Average 2 x 2 pixels, rounding halves down and up alternately along a line, and pad to whole blocks.

    As in libjpeg, columns are padded before averaging and lines after it.
    """
    x = _extended(plane_BHW, 2, UNIT)
    total = x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]
    bias = torch.arange(total.shape[2], device=x.device, dtype=total.dtype) % 2 + 1
    return _extended((total + bias) >> 2, BLOCK, BLOCK)


def _coded(plane_BHW: torch.Tensor, table_B88: torch.Tensor) -> torch.Tensor:
    """DCT, quantise, dequantise and inverse DCT of all blocks, clamped to 0..255.

    Products are of integers below 2 ** 53 in float64, so they are exact in any order.
    """
    batch, height, width = plane_BHW.shape
    cut = plane_BHW.view(batch, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(2, 3).double() - 128.0
    forward, inverse = (upload(m, plane_BHW.device) for m in (forward_matrix(), inverse_matrix()))
    table = table_B88[:, None, None]
    # multiplying from the right is one product for all blocks, from the left a small product per block
    rows = _shifted(cut @ forward.T, _FIXED - _PASS)
    coefficients = _shifted((rows.mT @ forward.T).mT, _FIXED + _PASS)  # eight times too large, as the divisors are
    divisor = table * 8.0
    whole = torch.floor((coefficients.abs() + (divisor / 2).floor()) / divisor) * coefficients.sign() * table
    columns = _shifted((whole.mT @ inverse.T).mT, _FIXED - _PASS)
    back = _shifted(columns @ inverse.T, _FIXED + _PASS + 3)
    return (back + 128.0).clamp_(0, 255).int().transpose(2, 3).reshape(batch, height, width)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Divide integers by a power of two, rounding halves up."""
    return torch.floor(x * 2.0**-bits + 0.5)


def _enlarged(plane_BHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Double the size ("fancy" upsampling): 3/4 of the nearest pixel plus 1/4 of the next, along both axes.

    The plane is first cropped to the image; its last line and column are replicated. As in libjpeg, planes of one or
    two columns are upsampled by repetition.
    """
    x = plane_BHW[:, : (height + 1) // 2, : (width + 1) // 2]
    if x.shape[2] <= 2:
        return x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
    above = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    below = torch.cat([x[:, 1:], x[:, -1:]], dim=1)
    lines = torch.stack([3 * x + above, 3 * x + below], dim=2).flatten(1, 2)
    before = torch.cat([lines[:, :, :1], lines[:, :, :-1]], dim=2)
    after = torch.cat([lines[:, :, 1:], lines[:, :, -1:]], dim=2)
    made = torch.stack([(3 * lines + before + 8) >> 4, (3 * lines + after + 7) >> 4], dim=3).flatten(2, 3)
    return made[:, :height, :width]
