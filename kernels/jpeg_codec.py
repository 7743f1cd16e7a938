"""JPEG compression artefacts (baseline, 4:2:0 or 4:4:4 chroma), bit-exact with libjpeg.

Computes the lossy steps and their inverses: YCbCr conversion, 2 x 2 chroma averages, 8 x 8 DCT and quantisation;
lossless Huffman coding is omitted. Every step is libjpeg 6b's in integers (``jccolor``, ``jcsample``, ``jfdctint``,
``jidctint``, ``jdsample`` with smooth upsampling, ``jdcolor``), with the tables of ISO/IEC 10918-1 annex K, scaled by
quality as in libjpeg.

Used on a GPU, where DALI's operator works in float32 and repeats chroma: 1.7 levels from libjpeg on average, up to 30.
On a CPU, DALI's operator gives the pixels of libjpeg.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from substyle.kernels.dispatch import on_triton, upload

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

# ``jfdctint`` along a line, in units of 2 ** -13, for the first four samples; the others mirror them.
# The matrix of ``jidctint`` is its transpose.
_HALF = np.array([
    [8192, 8192, 8192, 8192], [11363, 9633, 6437, 2260], [10703, 4433, -4433, -10703], [9633, -2259, -11362, -6436],
    [8192, -8192, -8192, 8192], [6437, -11362, 2261, 9633], [4433, -10704, 10704, -4433], [2260, -6436, 9633, -11363],
])  # fmt: skip
DCT = np.hstack([_HALF, _HALF[:, ::-1] * np.resize([[1], [-1]], (8, 1))])  # coefficients by samples


def tables(quality: NDArray[np.int32]) -> NDArray[np.int32]:
    """Quantisation tables of luma and chroma, as ``jpeg_quality_scaling``. Shape: (B,) in 1 to 100 to (B, 2, 8, 8)."""
    wanted_B = np.clip(quality.astype(np.int64), 1, 100)
    percent_B = np.where(wanted_B < 50, 5000 // wanted_B, 200 - 2 * wanted_B)
    both = np.stack([LUMA_TABLE, CHROMA_TABLE])
    return np.asarray(np.clip((both * percent_B[:, None, None, None] + 50) // 100, 1, 255), np.int32)


def compressed(canvas_BSS3: torch.Tensor, quality_B: NDArray[np.int32], *, whole_chroma: bool = False) -> torch.Tensor:
    """Apply JPEG compression to each image. Shape: (B, S, S, 3) uint8 in and out, on any device.

    Args:
        quality_B: libjpeg quality of each image, 1 (lowest) to 100.
        whole_chroma: 4:4:4, chroma at full resolution, in place of 4:2:0.
    """
    if on_triton(canvas_BSS3):
        from substyle.kernels import jpeg_codec_triton

        return jpeg_codec_triton.compressed(canvas_BSS3.contiguous(), tables(quality_B), whole_chroma=whole_chroma)
    return compressed_reference(canvas_BSS3, quality_B, whole_chroma=whole_chroma)


def compressed_reference(
    canvas_BSS3: torch.Tensor, quality_B: NDArray[np.int32], *, whole_chroma: bool = False
) -> torch.Tensor:
    """:func:`compressed` in plain torch, on any device."""
    height, width = canvas_BSS3.shape[1:3]
    if not canvas_BSS3.numel():
        return canvas_BSS3.clone()
    table_B2 = upload(tables(quality_B).astype(np.float64), canvas_BSS3.device)
    red, green, blue = (canvas_BSS3[..., i].int() for i in range(3))
    luma = _descaled(_fixed(0.29900) * red + _fixed(0.58700) * green + _fixed(0.11400) * blue, _SCALE)
    # a half is rounded down, so that the maximum chroma is 255
    offset = (128 << _SCALE) + (1 << (_SCALE - 1)) - 1
    blueness = (-_fixed(0.16874) * red - _fixed(0.33126) * green + _fixed(0.50000) * blue + offset) >> _SCALE
    redness = (_fixed(0.50000) * red - _fixed(0.41869) * green - _fixed(0.08131) * blue + offset) >> _SCALE
    luma = _coded(_extended(luma, UNIT, UNIT), table_B2[:, 0])[:, :height, :width]
    chroma = []
    for plane in (blueness, redness):
        if whole_chroma:
            coded = _coded(_extended(plane, BLOCK, BLOCK), table_B2[:, 1])[:, :height, :width]
        else:
            coded = _enlarged(_coded(_halved(plane), table_B2[:, 1]), height, width)
        chroma.append(coded - 128)
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
    dct = upload(DCT.astype(np.float64), plane_BHW.device)
    table = table_B88[:, None, None]
    # multiplying from the right is one product for all blocks, from the left a small product per block
    rows = _shifted(cut @ dct.T, _FIXED - _PASS)
    coefficients = _shifted((rows.mT @ dct.T).mT, _FIXED + _PASS)  # eight times too large, as the divisors are
    whole = torch.floor((coefficients.abs() + 4.0 * table) / (8.0 * table)) * coefficients.sign() * table
    columns = _shifted((whole.mT @ dct).mT, _FIXED - _PASS)
    back = _shifted(columns @ dct, _FIXED + _PASS + 3)
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
