"""Part: every Triton kernel through the function that dispatches to it, against the CPU, then against its roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu_check import kernel_cases
from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.kernel_cases import Case, Tolerance
from benchmarks.gpu_check.rows import MEASURED, Job, Row, correctness, skipped
from benchmarks.roofline import Least
from substyle.kernels import dispatch

PART = "kernels"
ODD = (3, 34, 46)  # images, height, width: programs that end within an image, pictures that are no squares


def run(bench: Bench) -> Iterator[Job]:
    """Correctness of all kernels at an odd size and at a large batch, then their rates."""
    if bench.device.type == "cuda" and not dispatch.installed():
        reason = "triton is not installed; what follows is the kernels' torch path on the GPU"
        yield "Triton kernels", lambda: [skipped(PART, "Triton kernels", reason)]
    sizes = bench.sizes
    odd = kernel_cases.made(*ODD, checked=ODD[0], device=bench.device)
    for name, make in kernel_cases.all_cases(odd):
        yield name, lambda make=make: [_correct(bench, make(), "images of 34 × 46")]  # type: ignore[misc]
    large = kernel_cases.made(sizes.images, sizes.canvas, sizes.canvas, sizes.checked, bench.device)
    for name, make in kernel_cases.all_cases(large):
        yield name, lambda make=make: _both(bench, make)  # type: ignore[misc]


def _both(bench: Bench, make: Callable[[], Case]) -> Iterator[Row]:
    bench.require(2.0)
    case = make()
    yield _correct(bench, case, f"batch {case.images}, side {bench.sizes.canvas}")
    yield _rate(bench, case)


def _correct(bench: Bench, case: Case, where: str) -> Row:
    got, launches = launched(case.work)
    bench.clock.synchronize()
    there = got.cpu().index_select(case.axis, torch.tensor(case.picked))
    expected = case.expected()
    name = f"{case.name}, {where}"
    facts: dict[str, Any] = {"compared": expected.numel(), "triton launches": launches}
    if there.shape != expected.shape or there.dtype != expected.dtype:
        text = f"{tuple(there.shape)} {there.dtype}; expected {tuple(expected.shape)} {expected.dtype}"
        return correctness(PART, name, False, text, **facts)
    if not launches and dispatch.on_triton(got):
        return correctness(PART, name, False, "no Triton kernel was launched", **facts)
    good, text = verdict(there, expected, case.tolerance)
    return correctness(PART, name, good, text, **facts)


def verdict(got: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance) -> tuple[bool, str]:
    """Whether a result lies within its tolerance, and the numbers."""
    difference = (got.double() - expected.double()).abs()
    count = max(difference.numel(), 1)
    # written so that what is no number counts as beyond
    beyond = int((~(difference <= tolerance.levels)).sum())
    differing = int((~(difference == 0)).sum())
    spare = 1 if tolerance.differing else 0
    good = beyond <= tolerance.beyond * count and differing <= tolerance.differing * count + spare
    largest = float(difference.max()) if difference.numel() else 0.0
    return good, (
        f"{differing / count:.2e} of the values differ (allowed {tolerance.differing:g}), {beyond / count:.2e} by more "
        f"than {tolerance.levels} (allowed {tolerance.beyond:g}), largest difference {largest:g}"
    )


def _rate(bench: Bench, case: Case) -> Row:
    seconds = bench.clock.seconds(case.work, limit=min(5.0, bench.left()))
    least, basis = ceiling(bench, case.least)
    each = seconds["median"] / case.images
    return Row(
        PART, f"{case.name}, batch {case.images}, side {bench.sizes.canvas}", MEASURED, unit=case.unit,
        per_s=1.0 / each, seconds=seconds, ceiling_per_s=case.images / least, ceiling=basis,
        facts={"us each": each * 1e6, "GB/s": case.least.bytes / seconds["median"] / 1e9},
    )  # fmt: skip


def ceiling(bench: Bench, least: Least) -> tuple[float, str]:
    """The shortest seconds on this card for some work, and by what."""
    by_copy = least.bytes / bench.bandwidth
    by_sums = least.operations / bench.sheet.float32 if bench.sheet else 0.0
    if by_sums > by_copy:
        return by_sums, "the data sheet's float32 operations"
    return by_copy, "the measured copy"


def launched(work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """What some work gives, and how many Triton kernels it launched."""
    seen: list[object] = []
    with dispatch.watched(seen.append):
        return work(), len(seen)
