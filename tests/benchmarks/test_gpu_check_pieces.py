"""What the check of GPU claims is made of: clock, verdicts, ceilings, schema."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from benchmarks.gpu_check import (
    kernels,
    networks,
    rows,
)
from benchmarks.gpu_check.bench import TINY, Bench, OutOfTime
from benchmarks.gpu_check.cases import EXACT, PRINTED, SAMPLED, Tolerance
from benchmarks.gpu_check.clock import Clock
from benchmarks.gpu_check.rows import MEASURED, PASSED, SKIPPED, Row

from substyle.kernels import dispatch

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_launches_are_counted_and_the_way_is_given_back() -> None:
    before, ran = dispatch.launch, []

    class Kernel:
        def __getitem__(self, programs: tuple[int, int]) -> Callable[..., None]:
            return lambda *arguments, **constants: ran.append(programs)

    def work() -> torch.Tensor:
        x = torch.zeros(1)
        dispatch.launch(Kernel(), (1, 2), x, N=3)
        dispatch.launch(Kernel(), (3, 4), x, N=3)
        return x

    assert kernels.launched(work)[1] == len(ran) == 2
    assert dispatch.launch is before


def test_the_clock_of_a_gpu_times_between_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CUDA that only writes down what it is asked."""
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("event")

        def synchronize(self) -> None:
            said.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 6.0  # milliseconds

    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: said.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append("wait"))
    timed = Clock(torch.device("cuda"), 2).seconds(lambda: said.append("work"), warm=1, flush=False, calls=3)
    assert timed == {"median": 0.002, "p20": 0.002, "p80": 0.002, "repeats": 2}
    assert said == ["work", "wait", *["sleep", "event", "work", "work", "work", "event", "wait"] * 2]
    said.clear()
    Clock(torch.device("cuda"), 1).seconds(lambda: said.append("work"), warm=0, flush=False, ahead=False)
    assert said == ["wait", "event", "work", "event", "wait"]


@pytest.mark.parametrize(
    ("got", "tolerance", "good"),
    [
        ([5.0, 7.0], EXACT, True),
        ([5.0, 7.1], EXACT, False),
        ([5.0, 8.0], SAMPLED, True),  # one value may always differ
        ([6.0, 8.0], SAMPLED, False),
        ([5.0, 9.0], SAMPLED, False),
        ([5.0, 9.0], PRINTED, False),
        ([5.0, 9.0], Tolerance(1, 0.5, 0.5), True),
        ([5.0, float("nan")], Tolerance(1, 0.0, 0.9), False),
    ],
)
def test_verdicts(got: list[float], tolerance: Tolerance, good: bool) -> None:
    assert kernels.verdict(torch.tensor(got), torch.tensor([5.0, 7.0]), tolerance)[0] is good


def test_embeddings_are_compared_without_their_mean() -> None:
    reference = torch.randn(8, 4) + 100
    assert networks.compared(reference, reference).least > 0.999999
    assert networks.compared(reference + torch.randn(8, 4), reference).least < 0.99
    reference_and_none = reference.clone()
    reference_and_none[3] = float("nan")
    assert networks.compared(reference_and_none, reference).least == -1.0


def test_ceilings_of_a_known_card() -> None:
    bench = Bench(CPU, TINY)
    bench.__dict__["name"] = "NVIDIA H100 80GB HBM3"
    found, basis = kernels.ceiling(bench, kernels.Least(1, 10**15))
    assert found == pytest.approx(10**15 / 66.9e12)
    assert "data sheet" in basis
    assert kernels.ceiling(bench, kernels.Least(10**9, 1))[1] == "the measured copy"


def test_time_that_is_left() -> None:
    bench = Bench(CPU, TINY)
    bench.require(1e6)
    bench.deadline = time.monotonic() - 1
    with pytest.raises(OutOfTime, match="0 s of this part's time"):
        bench.require(1.0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": 0}, "schema"),
        ({"rows": None}, "rows"),
        ({"rows": [{"status": "good"}]}, "status"),
        ({"rows": [{"status": SKIPPED, "text": ""}]}, "text"),
        ({"rows": [{"status": MEASURED, "text": "", "unit": "", "per_s": 1.0, "seconds": {}}]}, "per_s"),
    ],
)
def test_the_schema_refuses(change: dict[str, Any], field: str) -> None:
    good = rows.document({}, [Row("part", "name", PASSED, facts={"off": float("nan")})], {})
    rows.check(good)
    assert json.loads(json.dumps(good, allow_nan=False))["rows"][0]["facts"] == {"off": "nan"}
    with pytest.raises(ValueError, match=field):
        rows.check({**good, **change})


def test_ratios() -> None:
    row = Row("part", "a | b", MEASURED, unit="images", per_s=50.0, ceiling_per_s=200.0, ceiling="x", peers={"p": 25.0})
    assert row.of_ceiling == 0.25
    assert row.times_faster == {"p": 2.0}
    assert "| part | a / b | measured | 50 images/s | 0.25 of x | 2.00 × p |" in rows.table([row])
