"""The kernels to be checked: inputs, reference on the CPU, how far a result may lie from it, and the least work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import roofline
from benchmarks.roofline import Least
from substyle.kernels import (
    contraction,
    difference,
    displacement,
    halftone,
    jpeg_codec,
    noise,
    philox,
    probe_data,
    tables,
    warp,
)

Work = Callable[[], torch.Tensor]
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
CPU = torch.device("cpu")
ELASTIC_SIGMA = 2.24  # pixels at 224; the kernel's taps follow from it
STDS, AMOUNTS, RATES = (0.08, 0.12, 0.18, 0.26, 0.38), (0.03, 0.06, 0.09, 0.17, 0.27), (60.0, 25.0, 12.0, 5.0, 3.0)
SEEDS = (7, -1, 2**63 + 5)
THRESHOLD = 51  # of 256: a unit in five is dropped


@dataclass(frozen=True)
class Tolerance:
    """How far bytes may lie from the reference.

    Attributes:
        levels: difference, of bytes a whole one, that at most a share ``beyond`` of the values may exceed.
        beyond: that share.
        differing: largest share of values that differ at all; one value more is always allowed unless it is 0.
    """

    levels: float = 0
    beyond: float = 0.0
    differing: float = 0.0


EXACT = Tolerance()
SAMPLED, WARPED, PRINTED = Tolerance(1, 0.0, 0.002), Tolerance(1, 0.0, 0.005), Tolerance(1, 0.001, 0.01)


@dataclass(frozen=True)
class Case:
    """One kernel on one batch.

    Attributes:
        work: runs it on the device.
        expected: what the CPU's reference gives for the images of ``picked``.
        picked: which images of the result are compared, along axis ``axis``.
        least: the work that must be done for the batch.
        images: of the batch, or what is counted in their place, in ``unit``.
    """

    name: str
    work: Work
    expected: Work
    picked: list[int]
    tolerance: Tolerance
    least: Least
    images: int
    axis: int = 0
    unit: str = "images"
    of: tuple[Any, ...] = ()  # kernel and reference as functions of the inputs, and these


@dataclass(frozen=True)
class Made:
    """Pictures and what images draw, on the CPU, and where kernels run."""

    canvas: torch.Tensor
    keys: philox.U64
    picked: list[int]
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, height, width, channels = self.canvas.shape
        return batch, height, width, channels

    def cycled(self, values: tuple[float, ...]) -> Array:
        """The values in turn, one for each image."""
        return np.resize(np.array(values, np.float32), len(self.canvas))

    def drawn(self, low: float, high: float, *shape: int) -> Array:
        """Uniform numbers (B, *shape)."""
        return np.random.default_rng(1).uniform(low, high, (len(self.canvas), *shape)).astype(np.float32)

    def case(
        self,
        name: str,
        kernel: Callable[..., torch.Tensor],
        reference: Callable[..., torch.Tensor],
        given: tuple[torch.Tensor | Array, ...],
        tolerance: Tolerance,
        least: Least,
    ) -> Case:
        """A kernel on the canvas and what else is given for each image: tensors on the device, arrays on the host."""
        there, p = [v.to(self.device) if isinstance(v, torch.Tensor) else v for v in (self.canvas, *given)], self.picked
        return Case(
            name, lambda: kernel(*there), lambda: reference(self.canvas[p], *(v[p] for v in given)),
            p, tolerance, least, len(self.canvas), of=(kernel, reference, (self.canvas, *given)),
        )  # fmt: skip


def made(batch: int, height: int, width: int, checked: int, device: torch.device) -> Made:
    """Random pictures, of which the first ones and the last are compared."""
    canvas = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    picked = sorted({*range(min(checked, batch) - 1), batch - 1})
    return Made(torch.from_numpy(canvas), philox.image_keys(0, [f"{i}" for i in range(batch)]), picked, device)


def all_cases(m: Made) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Makers of the cases by name; the inputs of each are on the device as long as it is."""
    steps = (len(np.unique(tables.shot_table(max(RATES)))) - 1).bit_length()  # halvings that find a count of photons
    for name, strengths, each in (("gaussian", STDS, 6), ("impulse", AMOUNTS, 4), ("shot", RATES, 3 * steps)):
        yield name, partial(_noise, m, f"{name}_noise", strengths, each)
    square = (swirl, grid, elastic) if m.canvas.shape[1] == m.canvas.shape[2] else ()
    for make in (bits, compared, remapped, dots, lines, jpeg, contracted, dropout, *square):
        yield make.__name__, partial(make, m)
    for kind in (torch.float16, torch.int8):
        yield f"{str(kind)[6:]}_rows", partial(rows, m, kind)


def _noise(m: Made, name: str, strengths: tuple[float, ...], each: int) -> Case:
    kernel, reference = (
        lambda canvas, strength, keys, make=make: make(canvas, strength, keys, name)
        for make in (getattr(noise, name), getattr(noise, f"{name}_reference"))
    )
    given, least = (m.cycled(strengths), m.keys), roofline.noise(*m.shape, each)
    return m.case(name, kernel, reference, given, EXACT, least)


def bits(m: Made) -> Case:
    """The 16-bit random numbers that noise and displacements are made of."""
    count, p = m.canvas[0].numel(), m.picked
    work = partial(noise.bits16, m.keys, "bits", count, m.device)
    expected = partial(philox.bits16_torch, m.keys[p], "bits", count, CPU)
    return Case("bits16", work, expected, p, EXACT, roofline.bits16(len(m.keys), count), len(m.keys))


def compared(m: Made) -> Case:
    """Sum of absolute differences of each picture and its neighbour's."""
    given, least = (m.canvas.roll(1, 0),), roofline.difference(*m.shape)
    return m.case("difference", difference.total, difference.total, given, EXACT, least)


def remapped(m: Made) -> Case:
    """Sampling by a field in memory."""
    shift = torch.from_numpy(m.drawn(-12.0, 12.0, 2, *m.shape[1:3]))
    return m.case("remap", warp.remap, warp.remap_reference, (shift,), SAMPLED, roofline.remap(*m.shape))


def dots(m: Made) -> Case:
    given, least = (m.drawn(4.0, 8.0, 3), m.drawn(0.0, 3.0, 3)), roofline.dots(*m.shape)
    return m.case("dots", halftone.dots, halftone.dots_reference, given, PRINTED, least)


def lines(m: Made) -> Case:
    given, least = (m.drawn(4.0, 8.0), m.drawn(0.0, 3.0)), roofline.lines(*m.shape)
    return m.case("lines", halftone.lines, halftone.lines_reference, given, PRINTED, least)


def jpeg(m: Made) -> Case:
    given, least = (m.cycled((18, 15, 10, 7, 1, 50, 90, 100)).astype(np.int32),), roofline.jpeg(*m.shape[:3])
    return m.case("jpeg", jpeg_codec.compressed, jpeg_codec.compressed_reference, given, EXACT, least)


def swirl(m: Made) -> Case:
    side = m.canvas.shape[1]
    given = m.drawn(0.3 * side, 0.7 * side, 2), m.drawn(0.5 * side, 0.9 * side), m.drawn(2.0, 6.0)
    return m.case("swirl", warp.swirl, warp.swirl, given, WARPED, roofline.swirl(*m.shape))


def grid(m: Made) -> Case:
    """A grid whose nodes moved."""
    given, least = (torch.from_numpy(m.drawn(-8.0, 8.0, 2, 6, 6)),), roofline.grid(*m.shape)
    return m.case("grid", warp.grid, warp.grid, given, WARPED, least)


def elastic(m: Made) -> Case:

    def moved(canvas: torch.Tensor, keys: philox.U64, amplitude: Array) -> torch.Tensor:
        return warp.elastic(canvas, keys, "elastic", amplitude, ELASTIC_SIGMA)

    least = roofline.elastic(*m.shape, taps=displacement.blur_weights(ELASTIC_SIGMA).size)
    return m.case("elastic", moved, moved, (m.keys, m.drawn(3.0, 16.0)), WARPED, least)


def contracted(m: Made) -> Case:
    """A contracting convolution of the style networks: maps of 32 channels, which three styles share."""
    batch, height, width, _ = m.shape
    styles, channels, generator = 3, 32, torch.Generator().manual_seed(1)
    sides = height // 2 * 2, width // 2 * 2
    maps = torch.randn(1, batch, *sides, channels, generator=generator).to(torch.bfloat16)
    factor, offset = torch.randn(2, styles, batch, channels, generator=generator)
    weight = torch.randn(channels, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    kernel, p = contraction.taps(weight).to(torch.bfloat16), m.picked
    there = [t.to(m.device) for t in (maps, factor, offset, kernel)]
    return Case(
        "contraction", lambda: contraction.contract(*there)[0],
        lambda: contraction.contract_reference(maps[:, p], factor[:, p], offset[:, p], kernel)[0],
        p, Tolerance(0.1), roofline.contracted(batch, styles, *sides, channels, channels), batch, axis=1,
    )  # fmt: skip


def dropout(m: Made) -> Case:
    steps, (height, width) = 4, m.shape[1:3]

    def drawn(kept_nSHB: torch.Tensor) -> torch.Tensor:
        probe_data.draw_masks(kept_nSHB, SEEDS, 2**32 - steps, THRESHOLD)
        return kept_nSHB

    shape, least = (steps, len(SEEDS), 8 * height, width), roofline.dropout(steps * len(SEEDS), 8 * height * width)
    work, expected = (partial(drawn, torch.empty(shape, dtype=torch.bool, device=d)) for d in (m.device, CPU))
    return Case("dropout", work, expected, list(range(steps)), EXACT, least, steps, unit="steps")


def rows(m: Made, stored: torch.dtype) -> Case:
    """Standardised rows of a table that no cache holds, drawn at random, for products in bf16."""
    _, height, width, _ = m.shape
    count, wide, generator = 4 * height, 3 * width, torch.Generator().manual_seed(0)
    table = torch.randn(200 * height, wide, generator=generator) * 3
    mean, scale = torch.randn(wide, generator=generator), torch.rand(wide, generator=generator)
    row = torch.randint(len(table), (count,), generator=generator)
    kept, factor = probe_data.quantise(table, mean, scale) if stored == torch.int8 else (table.to(stored), None)
    x, row_there, mean_there, scale_there = (v.to(m.device) for v in (kept, row, mean, scale))
    out = torch.empty(count, wide, dtype=torch.bfloat16, device=m.device)
    factor_there = None if factor is None else factor.to(m.device)
    picked = sorted({0, count // 2, count - 1})
    # rounded to eight bits of mantissa: where a product and a difference are one operation, some go the other way
    return Case(
        f"rows of {str(stored)[6:]}",
        lambda: probe_data.gather(x, row_there, mean_there, scale_there, out, factor_there),
        lambda: probe_data.reference(kept, row[picked], mean, scale, factor).to(torch.bfloat16), picked,
        EXACT if factor is None else Tolerance(0.5, 0.0, 0.01),
        roofline.gather(count, wide, stored.itemsize, 2), count, unit="rows",
    )  # fmt: skip
