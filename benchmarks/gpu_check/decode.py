"""Part: decode and variants on a GPU, as far as there is a way to run them there."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import Job, skipped

PART = "decode"
CLAIMS = ("decode, resize and crop by DALI", "the 31 variants in one pass")


def run(bench: Bench) -> Iterator[Job]:
    """What is missing for each claim."""
    for claim in CLAIMS:
        yield claim, lambda claim=claim: [skipped(PART, claim, _missing())]  # type: ignore[misc]


def _missing() -> str:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "DALI is not installed"
    return "the engine builds its DALI pipelines for the CPU; there is no GPU path to check yet"
