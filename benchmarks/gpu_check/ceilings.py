"""Part: what the card itself reaches, in copying and in matrix products; the ceilings of all that follows."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import MEASURED, Job, Row

PART = "ceilings"


def run(bench: Bench) -> Iterator[Job]:
    """A copy on the device and a bf16 product, against the data sheet."""
    copy = f"copy of {bench.sizes.copied:,} bytes on the device, read and written"
    product = f"bf16 product of two matrices of side {bench.sizes.gemm}"
    sheet = bench.sheet
    source, moved, done = ("", None, None)
    if sheet:
        source, moved, done = f"the data sheet of {sheet.name}", sheet.bandwidth, sheet.flops
    yield "copy", lambda: [Row(PART, copy, MEASURED, "", "bytes", bench.bandwidth, bench.copying, moved, source)]
    yield (
        "product",
        lambda: [Row(PART, product, MEASURED, "", "operations", bench.gemm_flops, bench.multiplying, done, source)],
    )
