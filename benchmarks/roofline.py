"""Minimum work of a kernel for given shapes: bytes of device memory moved, and operations.

For a roofline next to a measured time. Bytes count every input read once and every output written once; tables and
parameters shared by all images are left out. Operations are additions, multiplications, comparisons and shifts of
32-bit numbers in the kernel as written; a fused multiply-add counts as two, a transcendental function as one, an
address as none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

PHILOX = 10 * 10 + 8  # per 128-bit block: ten rounds of 4 products, 4 xors, 2 sums; then halves
_LERP = 3 * 2 + 2  # three interpolations of a value from its four neighbours, and rounding
_PLACE = 2 * 9 + 4  # mirroring of both coordinates, and their interpolation weights


class Least(NamedTuple):
    """Bytes moved and operations done; both add up over kernels that run in sequence."""

    bytes: int
    operations: int

    def seconds(self, bytes_per_second: float, operations_per_second: float) -> float:
        """Return the shortest time on a device of these rates: the larger of memory and compute time."""
        return max(self.bytes / bytes_per_second, self.operations / operations_per_second)


def bits16(batch: int, count: int, itemsize: int = 4) -> Least:
    """16-bit random numbers, written in ``itemsize`` bytes each."""
    return Least(batch * count * itemsize, batch * -(-count // 8) * PHILOX)


def noise(batch: int, height: int, width: int, channels: int, each: int) -> Least:
    """Keyed noise; ``each`` is 6 for Gaussian, 4 for impulse and 3 per halving of the table for shot noise."""
    values = batch * height * width * channels
    return Least(2 * values, -(-values // 8) * PHILOX + values * each)


def _sampled(shape: tuple[int, ...], field: int, place: int) -> Least:
    """Bilinear sampling: bytes of a field and operations that find the place, per pixel."""
    batch, height, width, channels = shape
    pixels = batch * height * width
    return Least(pixels * (2 * channels + field), pixels * (_PLACE + place + channels * _LERP))


def remap(*shape: int) -> Least:
    """Sampling by a float32 field read from memory."""
    return _sampled(shape, 8, 2)


def swirl(*shape: int) -> Least:
    """Sampling at computed coordinates: distance, exponential, sine, cosine and a rotation."""
    return _sampled(shape, 0, 22)


def grid(*shape: int) -> Least:
    """Sampling at coordinates interpolated between the nodes of a small grid."""
    return _sampled(shape, 0, 26)


def elastic(batch: int, height: int, width: int, channels: int, taps: int) -> Least:
    """Random bits (uint16) to memory, row blur (float32) to memory, column blur and sampling."""
    pixels = batch * height * width
    made = bits16(batch, 2 * height * width, 2)
    blurred = Least(pixels * 2 * (2 + 4), pixels * 2 * taps * 2)
    moved = Least(pixels * (2 * 4 + 2 * channels), pixels * (2 * taps * 2 + _PLACE + 4 + channels * _LERP))
    return Least(made.bytes + blurred.bytes + moved.bytes, made.operations + blurred.operations + moved.operations)


def dots(*shape: int) -> Least:
    """A lattice per channel: two coordinates, a distance, a radius and three clips for each value."""
    return Least(2 * math.prod(shape), 30 * math.prod(shape))


def lines(*shape: int) -> Least:
    """One distance and three clips for each value."""
    return Least(2 * math.prod(shape), 22 * math.prod(shape))


def difference(*shape: int) -> Least:
    """Sum of the absolute differences of two images."""
    return Least(2 * math.prod(shape), 3 * math.prod(shape))


def jpeg(batch: int, height: int, width: int) -> Least:
    """Decoded planes (luma, and chroma at a quarter of the pixels) in memory between two kernels.

    Operations per value of a plane: 66 and 60 per line of 8 in each pass of a transform, 12 to quantise and clip. Per
    pixel: 25 to planes, 35 to upsample and to colours.
    """
    pixels = batch * height * width
    return Least(pixels * (3 + 3 + 3), pixels * 3 * (2 * (66 + 60) // 8 + 12) // 2 + pixels * 60)


def contracted(batch: int, styles: int, height: int, width: int, channels: int, made: int) -> Least:
    """Maps of 16 bits, read once for all styles; each value that a tap reads is scaled, shifted, cut and rounded."""
    pixels = batch * styles * height * width // 4
    return Least(2 * (batch * height * width * channels + pixels * made), pixels * 9 * channels * 4)


def gather(rows: int, width: int, itemsize: int, outsize: int) -> Least:
    """Rows of a table, each number read and written once, with the row's index; int8 rows have a scale factor."""
    factor = itemsize == 1
    return Least(rows * (width * (itemsize + outsize) + 8 + 4 * factor), rows * width * (2 + factor))


def dropout(masks: int, units: int) -> Least:
    """Dropout masks, a byte each, compared with one of the 16 random bytes of a block."""
    return Least(masks * units, masks * (-(-units // 16) * PHILOX + 2 * units))


def cross_entropy(heads: int, classes: int, batch: int, itemsize: int = 4) -> Least:
    """Logits read and gradients written in ``itemsize`` bytes each; int64 classes and a weight per row.

    Operations per value: maximum and sum (7) and gradient (6); per row: the loss (5).
    """
    values, rows = heads * classes * batch, heads * batch
    return Least(2 * values * itemsize + 8 * batch + 4 * rows + 4 * heads, 13 * values + 5 * rows)


def adamw(heads: int, parameters: int, itemsize: int = 4) -> Least:
    """One step: float32 weights and both moments read and written, gradients read.

    Args:
        heads: K; each has its own learning rate and decay.
        parameters: total over all heads.
        itemsize: bytes per gradient.
    """
    return Least(parameters * (24 + itemsize) + 8 * heads, parameters * 16)
