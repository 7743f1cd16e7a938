"""The check of GPU claims about probes: replayed steps and held embeddings, in a tiny form on the CPU."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import roofline
from benchmarks.gpu_check import probe_replay, probe_solver, probe_tables, probe_ways, probes
from benchmarks.gpu_check.bench import TINY, Bench
from benchmarks.gpu_check.rows import FAILED, MEASURED, PASSED
from tests.benchmarks.conftest import Run
from tests.fake_graphs import FakeGraphs

from substyle.engine import cuda
from substyle.engine.probes import heads
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import Dataset
from substyle.engine.probes.objective import Objective, StoredObjective
from substyle.engine.probes.solver import Fit
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import split_products
from substyle.kernels.probe_heads import Heads

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.usefixtures("steps_alone")
@pytest.mark.parametrize("wrong", [False, True])
def test_replayed_steps_are_held_against_float64_and_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    """With graphs that stand in for a GPU's, and once with half of the learning rates."""
    monkeypatch.setattr(cuda, "_capture", FakeGraphs().capture)
    monkeypatch.setattr(probe_replay, "cannot", lambda bench: "")
    monkeypatch.setattr(heads, "replays", lambda device: True)
    if wrong:
        right = probe_replay.schedule
        monkeypatch.setattr(probe_replay, "schedule", lambda shares, taken: right([0.5] * len(shares), taken))
    code, data = run("--only", "probes")
    found = [row for row in data["rows"] if "replayed" in row["name"] or "epoch" in row["name"]]
    checked = [row["status"] for row in found if "float64" in row["name"]]
    assert checked == [FAILED if wrong else PASSED] * 4
    assert code == wrong
    measured = [row for row in found if row["status"] == MEASURED]
    assert [row["unit"] for row in measured] == ["head-steps"] * 2 + ["rows"] * 2
    for row in measured[:2]:
        assert row["ceiling_per_s"] > 0
        assert len(row["peers"]) == 4
    for row in measured[2:]:
        assert row["facts"]["s an epoch"] == pytest.approx(39_716_177 / row["per_s"])


def test_rows_of_another_seed_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is asked before the CPU: every second time."""
    right, numbers = probe_replay.stream_of, itertools.count()
    assert probe_replay.drawn(Bench(CPU, TINY)).status == PASSED
    monkeypatch.setattr(probe_replay, "stream_of", lambda task, seed, where: right(task, next(numbers) % 2, where))
    assert probe_replay.drawn(Bench(CPU, TINY)).status == FAILED


def test_element_wise_halves_stand_beside_their_roofline() -> None:
    bench = Bench(CPU, TINY)
    bench.__dict__["name"] = "NVIDIA H100 80GB HBM3"  # a card whose operations a second are known
    problem = probe_ways.problem(TINY.rows, TINY.width, TINY.classes, 3, 0)
    loss, step = (list(part(bench, problem))[-1] for part in (probes._cross_entropy, probes._adamw))
    parameters = 3 * (TINY.classes * TINY.width + TINY.classes)
    expected = (roofline.cross_entropy(3, TINY.classes, TINY.rows), roofline.adamw(3, parameters))
    for row, least in zip((loss, step), expected, strict=True):
        assert (row.facts["fewest bytes"], row.facts["fewest operations"]) == least
        assert row.facts["us by the roofline"] / row.facts["us"] == pytest.approx(row.of_ceiling)


def test_other_embeddings_and_other_accuracies_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is asked before the CPU: every second time."""
    right, numbers = probe_tables.hold, itertools.count()

    def hold(table: EmbeddingTable, config: ProbeConfig, device: torch.device) -> Dataset:
        moved = replace(table, x_TND=table.x_TND + np.float16(1)) if next(numbers) % 2 == 0 else table
        return right(moved, config, device)

    monkeypatch.setattr(probe_tables, "hold", hold)
    monkeypatch.setattr(
        probe_tables, "accuracies", lambda table, config: {"transformation/linear": float(next(numbers))}
    )
    jobs = probe_tables.jobs(Bench(CPU, TINY))
    assert [row.status for name, work in jobs if name != "loading" for row in work()] == [FAILED] * 7


@pytest.mark.parametrize("wrong", ["", "moved", "early"])
def test_fitted_linear_heads_are_held_against_the_cpu(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """And heads that lie elsewhere, or whose fit ended early, would be seen."""
    right, calls = probe_solver.fitted, itertools.count()

    def fitted(table: EmbeddingTable, device: torch.device, dtype: torch.dtype, start: Heads | None = None) -> Fit:
        found = right(table, device, dtype, start)
        if next(calls) in (2, 4):  # those of the device
            found.heads.w1[0, 0, 0] += 0.5 if wrong == "moved" else 0.0
            found.gradient_K[0] *= 1e3 if wrong == "early" else 1.0
        return found

    monkeypatch.setattr(probe_solver, "fitted", fitted)
    rows = list(probe_solver.correct(Bench(CPU, TINY)))
    assert [row.status for row in rows] == [FAILED if wrong else PASSED] * 2
    assert ["rows as stored" in row.name for row in rows] == [False, True]


def test_the_tables_of_fitted_heads_are_gathered_and_read_as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU had tensor cores."""
    monkeypatch.setattr(split_products, "available", lambda device: True)
    read, passes = StoredObjective.__call__, [0]

    def counted(objective: Any, *given: Any) -> Any:  # noqa: ANN401
        passes[-1] += isinstance(objective, StoredObjective)
        return read(objective, *given)

    monkeypatch.setattr(Objective, "__call__", counted)
    for row in probe_solver.correct(Bench(CPU, TINY)):
        assert row.status == PASSED
        assert (passes[-1] > 1) == ("rows as stored" in row.name)
        passes.append(0)


@pytest.mark.parametrize(("kind", "reason"), [("cpu", "graphs"), ("cuda", "")])
def test_where_steps_cannot_be_replayed(kind: str, reason: str) -> None:
    said = probe_replay.cannot(Bench(torch.device(kind), TINY))
    assert (reason in said) if reason else said == ""
