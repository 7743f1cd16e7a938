"""The image kernels, each with inputs, its reference on the CPU, the tolerance of its tests and its least work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks import roofline
from benchmarks.gpu_check.cases import EXACT, PRINTED, SAMPLED, WARPED, Case, Made, Tolerance
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
from substyle.kernels.dispatch import on_triton

ELASTIC_SIGMA = 2.24  # pixels at 224; the kernel's taps follow from it
STDS, AMOUNTS, RATES = (0.08, 0.12, 0.18, 0.26, 0.38), (0.03, 0.06, 0.09, 0.17, 0.27), (60.0, 25.0, 12.0, 5.0, 3.0)


def all_cases(m: Made) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Makers of the cases by name; the inputs of each are on the device as long as it is."""
    square = (swirl, grid, elastic) if m.canvas.shape[1] == m.canvas.shape[2] else ()
    any_shape = (gaussian, impulse, shot, bits, compared, remapped, dots, lines, jpeg, contracted, dropout,
                 float16_rows, int8_rows)  # fmt: skip
    for make in any_shape + square:
        yield make.__name__, partial(make, m)


def _noise(m: Made, name: str, strengths: tuple[float, ...], each: int) -> Case:
    strength, there, p = m.cycled(strengths), m.canvas.to(m.device), m.picked
    kernel, reference = getattr(noise, name), getattr(noise, f"{name}_reference")
    return Case(
        name, lambda: kernel(there, strength, m.keys, name),
        lambda: reference(m.canvas[p], strength[p], m.keys[p], name),
        p, EXACT, roofline.noise(*m.shape, each), len(there),
    )  # fmt: skip


def gaussian(m: Made) -> Case:
    """Gaussian noise."""
    return _noise(m, "gaussian_noise", STDS, 6)


def impulse(m: Made) -> Case:
    """Impulse noise."""
    return _noise(m, "impulse_noise", AMOUNTS, 4)


def shot(m: Made) -> Case:
    """Shot noise; a count of photons is found by as many halvings as the highest rate's counts need."""
    steps = (len(np.unique(tables.shot_table(max(RATES)))) - 1).bit_length()
    return _noise(m, "shot_noise", RATES, 3 * steps)


def bits(m: Made) -> Case:
    """The 16-bit random numbers that noise and displacements are made of."""
    count, p = m.canvas[0].numel(), m.picked

    def work() -> torch.Tensor:
        if on_triton(torch.empty(0, device=m.device)):
            from substyle.kernels import philox_triton

            return philox_triton.bits16(m.keys, "bits", count, m.device)
        return philox.bits16_torch(m.keys, "bits", count, m.device)

    expected = lambda: philox.bits16_torch(m.keys[p], "bits", count, torch.device("cpu"))  # noqa: E731
    return Case("bits16", work, expected, p, EXACT, roofline.bits16(len(m.keys), count), len(m.keys))


def compared(m: Made) -> Case:
    """Sum of absolute differences of each picture and its neighbour's."""
    other, p = m.canvas.roll(1, 0), m.picked
    there, beside = m.canvas.to(m.device), other.to(m.device)
    return Case(
        "difference", lambda: difference.total(there, beside),
        lambda: difference.total(m.canvas[p], other[p]), p, EXACT, roofline.difference(*m.shape), len(there),
    )  # fmt: skip


def remapped(m: Made) -> Case:
    """Sampling by a field in memory."""
    batch, height, width, _ = m.shape
    shift, p = torch.from_numpy(m.drawn(-12.0, 12.0, 2, height, width)), m.picked
    there, field = m.canvas.to(m.device), shift.to(m.device)
    return Case(
        "remap", lambda: warp.remap(there, field), lambda: warp.remap_reference(m.canvas[p], shift[p]),
        p, SAMPLED, roofline.remap(*m.shape), batch,
    )  # fmt: skip


def dots(m: Made) -> Case:
    """Halftone dots."""
    there, p, cell, angle = m.canvas.to(m.device), m.picked, m.drawn(4.0, 8.0, 3), m.drawn(0.0, 3.0, 3)
    return Case(
        "dots", lambda: halftone.dots(there, cell, angle),
        lambda: halftone.dots_reference(m.canvas[p], cell[p], angle[p]), p, PRINTED,
        roofline.dots(*m.shape), len(there),
    )  # fmt: skip


def lines(m: Made) -> Case:
    """Halftone lines."""
    there, p, pitch, angle = m.canvas.to(m.device), m.picked, m.drawn(4.0, 8.0), m.drawn(0.0, 3.0)
    return Case(
        "lines", lambda: halftone.lines(there, pitch, angle),
        lambda: halftone.lines_reference(m.canvas[p], pitch[p], angle[p]),
        p, PRINTED, roofline.lines(*m.shape), len(there),
    )  # fmt: skip


def jpeg(m: Made) -> Case:
    """JPEG compression: two kernels."""
    there, p, quality = m.canvas.to(m.device), m.picked, m.cycled((18, 15, 10, 7, 1, 50, 90, 100)).astype(np.int32)
    return Case(
        "jpeg", lambda: jpeg_codec.compressed(there, quality),
        lambda: jpeg_codec.compressed_reference(m.canvas[p], quality[p]),
        p, EXACT, roofline.jpeg(*m.shape[:3]), len(there),
    )  # fmt: skip


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


def swirl(m: Made) -> Case:
    """Swirl."""
    side = m.canvas.shape[1]
    there, p, centre = m.canvas.to(m.device), m.picked, m.drawn(0.3 * side, 0.7 * side, 2)
    radius, strength = m.drawn(0.5 * side, 0.9 * side), m.drawn(2.0, 6.0)
    return Case(
        "swirl", lambda: warp.swirl(there, centre, radius, strength),
        lambda: warp.swirl(m.canvas[p], centre[p], radius[p], strength[p]),
        p, WARPED, roofline.swirl(*m.shape), len(there),
    )  # fmt: skip


def grid(m: Made) -> Case:
    """A grid whose nodes moved."""
    nodes, p = torch.from_numpy(m.drawn(-8.0, 8.0, 2, 6, 6)), m.picked
    there, moved = m.canvas.to(m.device), nodes.to(m.device)
    return Case(
        "grid", lambda: warp.grid(there, moved), lambda: warp.grid(m.canvas[p], nodes[p]),
        p, WARPED, roofline.grid(*m.shape), len(there),
    )  # fmt: skip


def elastic(m: Made) -> Case:
    """Elastic displacement: three kernels."""
    there, p, amplitude = m.canvas.to(m.device), m.picked, m.drawn(3.0, 16.0)
    taps = displacement.blur_weights(ELASTIC_SIGMA).size
    return Case(
        "elastic", lambda: warp.elastic(there, m.keys, "elastic", amplitude, ELASTIC_SIGMA),
        lambda: warp.elastic(m.canvas[p], m.keys[p], "elastic", amplitude[p], ELASTIC_SIGMA),
        p, WARPED, roofline.elastic(*m.shape, taps=taps), len(there),
    )  # fmt: skip


SEEDS = (7, -1, 2**63 + 5)
THRESHOLD = 51  # of 256: a unit in five is dropped


def dropout(m: Made) -> Case:
    """Dropout masks of a few training steps."""
    _, height, width, _ = m.shape
    steps = 4
    there, here = (
        torch.empty(steps, len(SEEDS), 8 * height, width, dtype=torch.bool, device=device)
        for device in (m.device, torch.device("cpu"))
    )

    def drawn(kept_nSHB: torch.Tensor) -> torch.Tensor:
        probe_data.draw_masks(kept_nSHB, SEEDS, 2**32 - steps, THRESHOLD)
        return kept_nSHB

    least = roofline.dropout(steps * len(SEEDS), 8 * height * width)
    return Case(
        "dropout", lambda: drawn(there), lambda: drawn(here), list(range(steps)), EXACT, least, steps, unit="steps"
    )


def _rows(m: Made, stored: torch.dtype) -> Case:
    """Standardised rows of a table that no cache holds, drawn at random, for products in bf16."""
    _, height, width, _ = m.shape
    count, wide, generator = 4 * height, 3 * width, torch.Generator().manual_seed(0)
    table = torch.randn(200 * height, wide, generator=generator) * 3
    mean, scale = torch.randn(wide, generator=generator), torch.rand(wide, generator=generator)
    row = torch.randint(len(table), (count,), generator=generator)
    kept, factor = probe_data.quantise(table, mean, scale) if stored == torch.int8 else (table.to(stored), None)
    x, row_there, mean_there, scale_there = (v.to(m.device) for v in (kept, row, mean, scale))
    factor_there = None if factor is None else factor.to(m.device)
    out = torch.empty(count, wide, dtype=torch.bfloat16, device=m.device)
    picked = sorted({0, count // 2, count - 1})
    expected = lambda: probe_data.reference(kept, row[picked], mean, scale, factor).to(torch.bfloat16)  # noqa: E731
    # rounded to eight bits of mantissa: where a product and a difference are one operation, some go the other way
    return Case(
        f"rows of {str(stored).removeprefix('torch.')}",
        lambda: probe_data.gather(x, row_there, mean_there, scale_there, out, factor_there), expected, picked,
        EXACT if factor is None else Tolerance(0.5, 0.0, 0.01),
        roofline.gather(count, wide, stored.itemsize, 2), count, unit="rows",
    )  # fmt: skip


def float16_rows(m: Made) -> Case:
    """Rows of a table that is held as it is stored."""
    return _rows(m, torch.float16)


def int8_rows(m: Made) -> Case:
    """Rows of a table that is held in 8 bits."""
    return _rows(m, torch.int8)
