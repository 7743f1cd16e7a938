"""Part: what the card itself reaches, in copying and in matrix products; the ceilings of all that follows."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import MEASURED, Job, Row
from substyle.engine.estimate.roofline import Device

PART = "ceilings"


def run(bench: Bench) -> Iterator[Job]:
    """A copy on the device and a bf16 product, against the data sheet."""
    yield "copy", lambda: [_copy(bench)]
    yield "product", lambda: [_product(bench)]


def _copy(bench: Bench) -> Row:
    sheet = bench.sheet
    name = f"copy of {bench.sizes.copied:,} bytes on the device, read and written"
    return Row(
        PART, name, MEASURED, unit="bytes", per_s=bench.bandwidth, seconds=bench.copying,
        ceiling_per_s=sheet.bandwidth if sheet else None, ceiling=_source(sheet),
    )  # fmt: skip


def _product(bench: Bench) -> Row:
    sheet = bench.sheet
    name = f"bf16 product of two matrices of side {bench.sizes.gemm}"
    return Row(
        PART, name, MEASURED, unit="operations", per_s=bench.gemm_flops, seconds=bench.multiplying,
        ceiling_per_s=sheet.flops if sheet else None, ceiling=_source(sheet),
    )  # fmt: skip


def _source(sheet: Device | None) -> str:
    return f"the data sheet of {sheet.name}" if sheet else ""
