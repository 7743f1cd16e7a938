"""Counts of probes against what the solver and training steps run on a CPU, and the plan of a whole study."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.gpu_check.probe_tables import made
from benchmarks.passes import counted

from substyle.engine.estimate import probes
from substyle.engine.estimate.counting import META, Counter
from substyle.engine.estimate.plan import STAGES, Plan, _part, _share, plan
from substyle.engine.estimate.probes import GRID, RESAMPLES, ROTATION, SINGLE, ProbedTable, linear_pass, step
from substyle.engine.estimate.roofline import DEVICES, DISK, HOST, TENSOR, UNITS, Busy, Efficiency, Launch, slowest
from substyle.engine.probes import batches, objective, training_rows
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.heads import grid, initial
from substyle.kernels import dispatch, probe_data, probe_step
from substyle.kernels.errors import ConfigError
from substyle.kernels.probe_heads import Term
from substyle.pipelines.transforms.registry import suite

pytestmark = pytest.mark.usefixtures("counted_once")

CPU, H100 = torch.device("cpu"), DEVICES["h100"]
SUITE = suite("substance31")
CONTROL = "control:random:test_vit"


@pytest.fixture
def as_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count torch's operations in place of Triton's kernels, as they run on a CPU."""
    probes._pass.cache_clear()
    for module in (probe_data, probe_step):
        monkeypatch.setattr(module, "on_triton", lambda tensor: False)
    yield
    probes._pass.cache_clear()


def table_of(photographs: int, width: int = 768, how: str = "float16", **more: Any) -> ProbedTable:  # noqa: ANN401
    size = float(len(SUITE) * photographs * width * 2)
    return replace(ProbedTable(width, 2, how, SUITE, photographs, 1000, 0.85, 0.1, size), **more)


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_a_cpu")
def test_passes_of_a_small_study_are_those_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches, operations and bytes of all passes of all linear probes of a backbone."""
    images, width = 400, 24
    for module in (objective, training_rows):  # several blocks
        monkeypatch.setattr(module, "block_rows", lambda width, outputs, device: 256)
    monkeypatch.setattr(batches, "KEPT", 0)  # that are gathered in each pass, as those of large tables
    ran: list[Launch] = []
    run = objective.Objective.__call__

    def watched(own: Any, *given: Any) -> Any:  # noqa: ANN401
        with Counter(CPU, typed=True) as counter:
            found = run(own, *given)
        ran.extend(counter.launches)
        return found

    monkeypatch.setattr(objective.Objective, "__call__", watched)
    config = ProbeConfig(
        tasks=("fine", "coarse", "semantic"), heads=("linear",), equal_width=16, resamples=3, redraws=4, bootstrap=100
    )
    stored = made(images, width)
    kept = counted(stored, config)
    trained = int((stored.split_N == 0).sum())
    heads = {GRID: 3, SINGLE: 1, RESAMPLES: 3}
    expected: list[tuple[float, Launch]] = []
    held_out = {"coarse": 4 + 4, "equal_coarse": 4}  # two blurs and two kinds of noise, and random sets
    for (task, kind), counts in kept.items():
        name = task.removeprefix("equal_")
        classes, seen = {"fine": (5, 5), "coarse": (3, 5 if kind == ROTATION else 3), "semantic": (4, 1)}[name]
        count = held_out[task] if kind == ROTATION else heads[kind]
        about = table_of(images, width, itemsize=2)
        work = linear_pass(
            *(trained * seen, 16 if task != name else width, count, counts["heads"], classes, torch.float32, about),
            resampled=kind == RESAMPLES,
        )
        work = [each for place, each in enumerate(work) if place % 3 < 2]  # without the search
        expected += [(counts["fp32"] * weight, launch) for weight, one in work for launch in one.launches]
    for of in (lambda launch: 1.0, lambda launch: launch.flop, lambda launch: launch.moved):
        assert sum(map(of, ran)) == pytest.approx(sum(weight * of(each) for weight, each in expected), rel=0.03)


def test_a_pass_is_counted_by_hand() -> None:
    """Products: logits and gradients of all rows, and changes of coordinates, none of them on tensor cores."""
    rows, heads, classes = 10**7, 3, 31
    launches = [
        (weight, launch)
        for weight, work in linear_pass(rows, 768, heads, 1.0, classes, torch.float32, table_of(10**6), resampled=False)
        for launch in work.launches
    ]
    size = training_rows.block_rows(768, heads * classes, META)
    blocks = -(-rows // size)
    flop = 4.0 * blocks * size * 768 * heads * classes
    assert sum(weight * launch.flop for weight, launch in launches) == pytest.approx(flop, rel=0.01)
    assert not any(launch.product for _, launch in launches)
    moved = sum(weight * launch.moved for weight, launch in launches)
    assert moved > rows * 768 * (2 + 3 * 4)  # the table is read, rows are written and read twice
    assert 20 < sum(weight for weight, _ in launches) / blocks < 60


def test_a_pass_over_rows_as_stored_is_counted_by_hand() -> None:
    """The table is read twice, both products run on tensor cores with two parts, and blocks are large."""
    rows, heads, classes = 4 * 10**7, 3, 31
    table = table_of(10**6)
    launches = [
        (weight, launch)
        for weight, work in linear_pass(rows, 768, heads, 1.0, classes, torch.float16, table, resampled=False)
        for launch in work.launches
    ]
    flop = 8.0 * rows * 768 * heads * classes
    assert sum(weight * launch.flop for weight, launch in launches) == pytest.approx(flop, rel=0.01)
    assert sum(weight * launch.flop for weight, launch in launches if launch.product) == pytest.approx(flop, rel=0.01)
    moved = sum(weight * launch.moved for weight, launch in launches) / rows
    assert 2 * 768 * 2 < moved < 2 * 768 * 2 + 90 * heads * classes + 400
    blocks = -(-rows // training_rows.stored_rows(heads * classes, META))
    assert 20 < sum(weight for weight, _ in launches) / blocks < 60


def test_a_slice_has_no_more_programs_than_a_grid() -> None:
    """Launches are checked on the meta device too: a probe of few classes has the longest slices."""
    assert linear_pass(37_500_000, 768, 1, 1.0, 10, torch.float16, table_of(10**6), resampled=False)
    with pytest.raises(ConfigError, match="at most 65535 along the second axis"):
        dispatch.launch(None, (1, 65_536), torch.empty(1, device=META))


def test_tables_in_float16_are_read_as_stored_where_most_rows_count() -> None:
    config, table = ProbeConfig(), table_of(1000)
    assert table.span(31, config) == 31 * 1000
    assert table.span(20, config) == 31 * 1000  # 20 × 0.85 of 31
    assert table.span(1, config) == 1000
    assert replace(table, train=0.4).span(31, config) == 0
    for how in ("int8", "streamed"):
        assert replace(table, how=how).span(31, config) == 0
    assert replace(table, itemsize=4).span(31, config) == 0
    assert table.span(31, replace(config, precision="fp32")) == 0
    assert slowest(parts(table_of(10**6), config)[probes.LINEAR[RESAMPLES]])[1] < 0.6 * slowest(
        parts(table_of(10**6), replace(config, precision="fp32"))[probes.LINEAR[RESAMPLES]]
    )[1]  # fmt: skip


def test_rows_that_fit_are_gathered_once() -> None:
    def moved(rows: int) -> float:
        work = linear_pass(rows, 768, 1, 1.0, 31, torch.float32, table_of(10**6), resampled=False)
        return sum(weight * one.traffic for weight, one in work) / rows

    few = batches.KEPT // (768 * 4)
    assert moved(few) < moved(2 * few) - 768 * 3


def test_a_step_of_mlps_has_the_products_of_one_on_a_cpu() -> None:
    config, batch, classes = ProbeConfig(widths=(64,)), 256, 31
    settings = tuple(grid(config))
    planned = step(settings, ((classes, batch),), config, table_of(1000, 128))
    heads = initial(64, 128, classes, len(settings), [0], CPU)
    x_BD, target_B = torch.zeros(batch, 128, dtype=torch.bfloat16), torch.zeros(batch, dtype=torch.int64)
    rates = np.full(len(settings), 1e-3)
    with Counter(CPU, typed=True) as counter:
        probe_step.step(heads, x_BD, [Term(target_B)], rates, rates)
    real = sum(launch.flop for launch in counter.launches)
    assert planned.flop == real == 3 * batch * 64 * (4.0 * 128 + 6.0 * classes)
    assert all(launch.product for launch in planned.launches if launch.flop)


def parts(
    table: ProbedTable, config: ProbeConfig, *, backbone: str = "x", others: int = 0
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, busy in probes.parts(
        table, config, H100, Efficiency(H100.reached), 1e9, backbone=backbone, others=others
    ):
        own = found.setdefault(name, {})
        own |= {resource: own.get(resource, 0.0) + seconds for resource, seconds in busy.items()}
    return found


@pytest.mark.slow
def test_probes_grow_with_photographs_and_settings() -> None:
    config = ProbeConfig()
    small, large = (parts(table_of(n), config) for n in (500_000, 1_000_000))
    for name in (*probes.LINEAR.values(), probes.EQUAL, probes.LOADING, probes.SCORES):
        assert slowest(large[name])[1] == pytest.approx(2 * slowest(small[name])[1], rel=0.02)
    for name in (probes.MLPS, probes.MULTITASK):  # steps, not epochs
        assert large[name] == small[name]
    longer = parts(table_of(500_000), replace(config, mlp_steps=1500, mlp_resamples=2, multitask_steps=1500))
    assert slowest(longer[probes.MULTITASK])[1] == pytest.approx(10 * slowest(small[probes.MULTITASK])[1])
    assert slowest(longer[probes.MLPS])[1] > 10 * slowest(small[probes.MLPS])[1]
    more = parts(table_of(500_000), replace(config, redraws=40))
    assert slowest(more[probes.LINEAR[ROTATION]])[1] > slowest(small[probes.LINEAR[ROTATION]])[1]
    assert parts(table_of(500_000), config, others=5)[probes.SCORES][HOST] > small[probes.SCORES][HOST]


@pytest.mark.slow
def test_what_is_off_is_not_counted() -> None:
    table = table_of(1000)
    assert probes.MULTITASK not in parts(table, ProbeConfig(), backbone="control:pixels")
    none = parts(table, ProbeConfig(rotate_controls=False), backbone="control:pixels")
    assert probes.LINEAR[ROTATION] not in none
    assert set(parts(table, ProbeConfig(tasks=("fine",), heads=("mlp",)))) == {
        probes.LOADING, probes.MLPS, probes.SCORES
    }  # fmt: skip
    narrow = parts(table_of(1000, 200), ProbeConfig())
    assert probes.EQUAL not in narrow
    assert slowest(parts(table, ProbeConfig(), backbone="control:statistics")[probes.LINEAR[GRID]])[1] > 0


def test_a_streamed_table_waits_for_the_disk() -> None:
    found = parts(table_of(4_000_000, how="streamed"), ProbeConfig())
    assert probes.LOADING not in found
    for kind in (GRID, RESAMPLES, ROTATION):
        assert slowest(found[probes.LINEAR[kind]])[0] == DISK
    fits = probes.PASSES["coarse", ROTATION]
    read = fits.gathered * 0.85 * found_rows(4_000_000) * 768 * 2 / 1e9
    assert found[probes.LINEAR[ROTATION]][DISK] == pytest.approx(read, rel=1e-3)


def found_rows(photographs: int) -> float:
    return photographs * len(SUITE)


def test_the_rotation_has_a_head_for_each_set_that_is_held_out() -> None:
    assert table_of(10).held_out(20) == [1] * 30 + [11] * 20
    several = replace(table_of(10), transformations=("identity", "fog@1", "fog@2", "snow", "defocus_blur"))
    assert several.held_out(2) == [2, 1, 2, 2]  # snow is the one that the suite holds out: fog or snow, 1.5 on average
    assert table_of(10).tasks() == {"fine": (31, 31), "coarse": (10, 20), "semantic": (1000, 1)}


def test_counting_takes_no_memory_for_rows() -> None:
    probes._pass.cache_clear()
    tracemalloc.start()
    with Counter(CPU) as counter:
        linear_pass(37_500_000, 768, 3, 1.0, 31, torch.float32, table_of(1_300_000), resampled=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    assert sum(launch.moved for launch in counter.launches) < 1e6  # what torch computes on the host


def planned(count: int = 1, photographs: int = 100_000, names: tuple[str, ...] = (CONTROL,)) -> Plan:
    return plan(names, SUITE, photographs, H100, count=count)


def of_stage(made: Plan, stage: str) -> float:
    return sum(part.hours for part in made.parts if part.stage == stage)


@pytest.mark.slow
def test_a_whole_study_adds_up() -> None:
    one, two, wide = planned(), planned(names=(CONTROL, "control:pixels")), planned(count=8)
    assert one.total_hours == pytest.approx(sum(part.hours for part in one.parts))
    assert of_stage(one, "embedding") == pytest.approx(one.hours)
    assert [part.stage for part in two.parts] == sorted((part.stage for part in two.parts), key=STAGES.index)
    larger = {(part.stage, part.name): part for part in two.parts}
    for part in one.parts:
        more = larger[part.stage, part.name]
        assert more.hours >= part.hours
        assert more.source == part.source
        kinds = {each.partition(":")[0] for each in part.source.split("; ")}
        assert kinds <= {"counted", "measured", "assumed"}
        assert part.limited_by in part.busy or part.hours == 0
    assert two.total_hours > one.total_hours
    for stage in ("probes", "analysis"):  # on one GPU
        assert of_stage(wide, stage) == of_stage(one, stage)
    assert of_stage(wide, "embedding") < of_stage(one, "embedding")
    assert one.describe()["parts"][0]["busy"] == one.parts[0].busy


def test_each_gpu_computes_one_backbone_at_a_time() -> None:
    a: list[tuple[str, Busy]] = [("x", {HOST: 2.0}), ("x", {HOST: 1.0}), ("y", {HOST: 1.0})]
    b: list[tuple[str, Busy]] = [("x", {HOST: 2.0}), ("z", {HOST: 2.0})]
    spent = {("probes", "a"): a, ("probes", "b"): b}
    shares = [_share(spent, "probes", count) for count in (1, 2, 3, 8)]
    assert shares == [1.0, 5 / 8, 5 / 8, 5 / 8]  # x takes 5 of 8 seconds
    assert _share(spent, "embedding", 8) == _share(spent, "analysis", 8) == 1.0
    assert _part("probes", "a", a, 0.5).hours == pytest.approx(2 / 3600)
    assert _part("probes", "a", [("x", {DISK: 3.0}), ("y", {DISK: 1.0})], 0.5).hours == pytest.approx(4 / 3600)


@pytest.mark.slow
def test_a_single_photograph() -> None:
    assert 0 < planned(photographs=1).total_hours < 0.1


def test_the_slowest_resource_limits() -> None:
    assert slowest({TENSOR: 1.0, UNITS[2]: 2.0, DISK: 2.5}) == (UNITS[2], 3.0)
    assert slowest({TENSOR: 1.0, DISK: 2.5}) == (DISK, 2.5)
    assert slowest({HOST: 1.0}) == (HOST, 1.0)
