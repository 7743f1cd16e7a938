"""What compiled kernels use is what the kept table says."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from benchmarks.compiled import rows_of
from benchmarks.harness import RESULTS, ROOT
from tests.kernels.test_ahead_of_time import BUDGETS, PINNED

NEWEST = "3.9.0"
TRITONS = sorted({*PINNED.values()} - {"3.7.0"})


def kept(triton: str, *architectures: int) -> list[dict[str, Any]]:
    """Rows of benchmarks/results/compiled.json."""
    rows = json.loads((RESULTS / "compiled.json").read_text())["rows"]
    return [row for row in rows if row["triton"] == triton and row["architecture"] in architectures]


@pytest.mark.slow
@pytest.mark.parametrize("version", [None, *TRITONS])
def test_every_kernel_compiles_as_it_did(version: str | None) -> None:
    """The installed Triton, and each that a torch of CUDA pins, in a folder of its own: an environment has one."""
    folder = version and ROOT / "build" / f"triton-{version}"
    if folder and not (folder / "triton").is_dir():
        pytest.skip(f"no {folder}: `make {folder.relative_to(ROOT)}` installs it")
    rows = rows_of(folder or None, (90,))
    assert {row["kernel"] for row in rows} == set(BUDGETS)
    assert version in (None, rows[0]["triton"])
    expected = kept(rows[0]["triton"], 90)
    if version or expected:  # another Triton than the one of the kept table may be installed
        assert rows == expected


def test_the_kept_table_has_every_kernel_and_no_spills() -> None:
    versions = {row["triton"] for version in (NEWEST, *TRITONS) for row in kept(version, 80, 90, 100)}
    assert versions == {NEWEST, *TRITONS}
    for version, arch in product(versions, (80, 90, 100)):
        rows = kept(version, arch)
        assert {row["kernel"] for row in rows} == set(BUDGETS)
        on_tensor_cores = {row["kernel"] for row in rows if row["tensor_core"]}
        assert on_tensor_cores == {"contraction_triton._contract"}
        # before Triton 3.9, sin and cos of large numbers, which it never has, take a stack
        assert {row["kernel"] for row in rows if row["spilled_bytes"]} <= {"warp_triton._swirl"}
