"""Counts of probes against sums by hand, and what their settings change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from substyle.engine.estimate import probes
from substyle.engine.estimate.probes import ProbedTable, linear_pass, step
from substyle.engine.estimate.roofline import DEVICES, DISK, GPU, HOST, Parts, slowest
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.heads import grid, initial
from substyle.kernels import probe_step
from substyle.kernels.probe_heads import Term
from substyle.pipelines.transforms.registry import suite

H100 = DEVICES["h100"]
SUITE = suite("substance31")


def table_of(photographs: int, width: int = 768, how: str = "float16", **more: Any) -> ProbedTable:  # noqa: ANN401
    return replace(ProbedTable(width, 2, how, SUITE, photographs, 1000, 0.85, 0.1), **more)


def parts(table: ProbedTable, config: ProbeConfig, *, backbone: str = "x", others: int = 0) -> Parts:
    return probes.parts(table, config, H100, backbone=backbone, others=others)


def test_a_pass_by_hand() -> None:
    """Gathered, in float32; as stored, which moves fewer bytes, on tensor cores; of narrow features."""
    rows, outputs, table = 10**7, 3 * 31, table_of(10**6)
    gathered, stored, narrow = (
        linear_pass(table, rows, width, outputs, H100, stored=as_stored)
        for width, as_stored in ((768, False), (768, True), (256, False))
    )
    assert gathered == pytest.approx(rows * 4 * 768 * outputs / (H100.float32 * H100.reached))
    assert stored == pytest.approx(rows * (4 * 768 + 78 * outputs) / (0.8 * H100.bandwidth))
    assert stored < gathered
    assert narrow == pytest.approx(rows * (4 * 256 * outputs + 2 * 768 * 256) / (H100.float32 * H100.reached))


def test_tables_in_float16_are_read_as_stored_where_most_rows_count() -> None:
    config, table = ProbeConfig(), table_of(1000)
    assert table.stored(31, config) == 31 * 1000
    assert table.stored(20, config) == 31 * 1000  # 20 × 0.85 of 31
    assert table.stored(1, config) == 1000
    assert replace(table, train=0.4).stored(31, config) == 0
    for how in ("int8", "streamed"):
        assert replace(table, how=how).stored(31, config) == 0
    assert replace(table, itemsize=4).stored(31, config) == 0
    assert table.stored(31, replace(config, expert=ExpertConfig(precision="fp32"))) == 0
    quick, slow = (
        parts(table_of(10**6), replace(config, expert=ExpertConfig(precision=each))) for each in ("auto", "fp32")
    )
    assert slowest(quick[probes.LINEAR])[1] < 0.6 * slowest(slow[probes.LINEAR])[1]


def test_a_step_of_mlps_has_the_products_of_one_on_a_cpu() -> None:
    config, batch, classes = ProbeConfig(widths=(64,)), 256, 31
    settings, unbound = grid(config), replace(H100, bandwidth=1e30)
    heads = initial(64, 128, classes, len(settings), [0], torch.device("cpu"))
    x_BD, target_B = torch.zeros(batch, 128, dtype=torch.bfloat16), torch.zeros(batch, dtype=torch.int64)
    rates = np.full(len(settings), 1e-3)
    with FlopCounterMode(display=False) as counter:
        probe_step.step(heads, x_BD, [Term(target_B)], rates, rates)
    planned = step(settings, batch, 128, classes, unbound) * H100.flops * H100.reached
    assert planned == pytest.approx(counter.get_total_flops())


def test_probes_grow_with_photographs_and_settings() -> None:
    config = ProbeConfig()
    small, large = (parts(table_of(n), config) for n in (500_000, 1_000_000))
    for name in (probes.LINEAR, probes.LOADING, probes.SCORES):
        assert slowest(large[name])[1] == pytest.approx(2 * slowest(small[name])[1], rel=0.02)
    assert large[probes.MLPS] == small[probes.MLPS]  # steps, not epochs
    longer = parts(table_of(500_000), replace(config, mlp_steps=1500, mlp_resamples=2, multitask_steps=1500))
    assert longer[probes.MLPS][GPU] > 10 * small[probes.MLPS][GPU]
    more = parts(table_of(500_000), replace(config, redraws=40))
    assert more[probes.LINEAR][GPU] > small[probes.LINEAR][GPU]
    assert parts(table_of(500_000), config, others=5)[probes.SCORES][HOST] > small[probes.SCORES][HOST]


def test_few_photographs_wait_for_launches() -> None:
    assert slowest(parts(table_of(1000), ProbeConfig())[probes.LINEAR])[0] == HOST
    assert slowest(parts(table_of(10**6), ProbeConfig())[probes.LINEAR])[0] == GPU


def test_what_is_off_is_not_counted() -> None:
    table, config = table_of(1000), ProbeConfig()
    whole, control, fixed, narrow = (
        parts(table, config),
        parts(table, config, backbone="control:pixels"),
        parts(table, replace(config, rotate="networks"), backbone="control:pixels"),
        parts(table_of(1000, 200), config),
    )
    assert control[probes.MLPS][GPU] < whole[probes.MLPS][GPU]  # no multi-task probe
    assert fixed[probes.LINEAR][GPU] < control[probes.LINEAR][GPU] == whole[probes.LINEAR][GPU]
    assert narrow[probes.LINEAR][HOST] < whole[probes.LINEAR][HOST]  # none of equal width
    assert set(parts(table, ProbeConfig(tasks=("transformation",), heads=("mlp",)))) == {
        probes.LOADING, probes.MLPS, probes.SCORES
    }  # fmt: skip


def test_a_streamed_table_waits_for_the_disk() -> None:
    found = parts(
        table_of(4_000_000, how="streamed"),
        ProbeConfig(tasks=("class",), heads=("linear",), expert=ExpertConfig(equal_width=0)),
    )
    assert probes.LOADING not in found
    passes = sum(passes for (task, _), (passes, _) in probes.PASSES.items() if task == "class")
    assert slowest(found[probes.LINEAR]) == (DISK, pytest.approx(passes * 0.85 * 4_000_000 * 768 * 2 / 1e9))
