"""Training with replayed steps, on fake CUDA graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick
from tests.fake_graphs import FakeGraphs, track
from torch.utils._python_dispatch import TorchDispatchMode

from substyle.engine import cuda
from substyle.engine.probes import heads, trainer
from substyle.engine.probes.batches import Batches, BatchPart, Features, StepSchedule
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import hold, standard_of
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.mlp import settings_of
from substyle.engine.probes.tasks import Task, class_task, stream_of, transformation_task
from substyle.engine.probes.trainer import Trained, train
from substyle.engine.store.table import EmbeddingTable

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> FakeGraphs:
    """A CPU for which `replays` is true."""
    made = FakeGraphs()
    monkeypatch.setattr(cuda, "_capture", made.capture)
    monkeypatch.setattr(heads, "replays", lambda device: True)
    monkeypatch.setattr(heads, "takes_turns", lambda width, device: False)
    return made


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Disables captures."""

    def call() -> None:
        monkeypatch.setattr(cuda, "WARM", 1 << 40)
        monkeypatch.setattr(cuda, "Captured", lambda launch, device: SimpleNamespace(replay=lambda: launch(None)))

    return call


def the_task(table: EmbeddingTable) -> Task:
    task = transformation_task(table, 0)
    assert task is not None
    return task


def learned(
    table: EmbeddingTable, settings: list[Setting], config: ProbeConfig, steps: int, dtype: torch.dtype = torch.float32
) -> dict[Setting, Trained]:
    task = the_task(table)
    features = Features(hold(table, config, CPU), standard_of(table, task, 0), CPU, dtype)
    part = BatchPart(task, stream_of(task, 0), 64)
    return train(features, [part], settings, config, steps, seeds=[0, 1])


def assert_same(ours: dict[Setting, Trained], theirs: dict[Setting, Trained], *, bits: bool = False) -> None:
    assert ours.keys() == theirs.keys()
    for setting, a in ours.items():
        b = theirs[setting]
        assert (a.setting, a.steps) == (b.setting, b.steps)
        for p, q in zip(a.heads.parameters, b.heads.parameters, strict=True):
            if bits:
                assert torch.equal(p, q)
            else:
                torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-3)
        np.testing.assert_allclose(a.validation, b.validation, atol=1e-9 if bits else 0.01)
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-9 if bits else 1e-3)


@pytest.mark.parametrize("width", [0, 16])
def test_replayed_steps_learn_what_the_host_s_do(
    make_table: Make, quick: Quick, graphs: FakeGraphs, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """With two seeds, individual rates and dropout."""
    config = quick(dropout=0.2)
    settings = [Setting(lr, 0.1, width) for lr in (1e-2, 3e-3, 1e-3)]
    table = make_table()
    ours = learned(table, settings, config, 24)
    assert graphs.replays == [2, 24 - cuda.WARM], "the validation before the steps and after them, and the steps"
    monkeypatch.setattr(heads, "replays", lambda device: False)
    assert_same(ours, learned(table, settings, config, 24))
    assert len(graphs.replays) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("steps", [3, 30])
def test_what_is_captured_is_what_runs_by_itself(
    make_table: Make, quick: Quick, graphs: FakeGraphs, eager: Callable[[], None], dtype: torch.dtype, steps: int
) -> None:
    """Bit-identical, with dropout, two widths and schedules of four steps."""
    table, config = make_table(), quick(dropout=0.2)
    settings = [Setting(1e-2, 0.1, 16), Setting(3e-3, 0.0, 16), Setting(1e-2, 0.1, 0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "AHEAD", 4)
        ours = learned(table, settings, config, steps, dtype)
    # three steps are too few to be captured; of 30 the first script has one step after it is warm
    assert cuda.WARM == 3
    assert graphs.replays == ([2] * 2 if steps == 3 else [2] * 2 + [steps - cuda.WARM] * 2)
    eager()
    assert_same(ours, learned(table, settings, config, steps, dtype), bits=True)


def test_captured_steps_end_with_the_training(
    make_table: Make, quick: Quick, graphs: FakeGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a reference cycle: their memory is not left to the garbage collector."""
    made = track(monkeypatch, heads, "_Step")
    gc.collect()
    gc.disable()
    try:
        learned(make_table(), [Setting(1e-2, 0.1, 0)], quick(dropout=0.0), 12)
        assert graphs.replays == [2, 12 - cuda.WARM]
        assert [step() for step in made] == [None]
    finally:
        gc.enable()


def test_scripts_too_short_to_warm_up_run_eagerly(
    make_table: Make, quick: Quick, graphs: FakeGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps at a time: none is captured, all are performed."""
    monkeypatch.setattr(trainer, "AHEAD", 3)
    table, settings, config = make_table(), [Setting(1e-2, 0.1, 0)], quick(dropout=0.0)
    ours = learned(table, settings, config, 12)
    assert graphs.replays == [2], "the validation alone"
    monkeypatch.setattr(heads, "replays", lambda device: False)
    assert_same(ours, learned(table, settings, config, 12))


@pytest.mark.parametrize("how", ["streamed", "int8"])
def test_tables_of_every_kind(
    make_table: Make, quick: Quick, graphs: FakeGraphs, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed windows of five steps: schedules are at most that long, and their rows stay valid."""
    table, settings = make_table(), [Setting(1e-2, 0.1, 0), Setting(1e-3, 0.1, 0)]
    config = quick(dropout=0.0)
    expected = learned(table, settings, config, 20)
    captured_once = len(graphs.replays)
    held = replace(config, expert=replace(config.expert, table=how))
    if how == "streamed":
        monkeypatch.setattr(ProbeConfig, "stream_buffer", 2 * 5 * 64 * 20 * 2)
    ours = learned(table, settings, held, 20)
    assert len(graphs.replays) == 2 * captured_once
    if how == "streamed":
        assert_same(ours, expected, bits=True)
    else:
        for setting in settings:
            assert ours[setting].validation == pytest.approx(expected[setting].validation, abs=0.05)


def test_twins_and_their_parts(
    make_table: Make, quick: Quick, graphs: FakeGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two losses over halves of each batch, with individual factors per head; two validations."""
    table = make_table()
    transformation, class_ = the_task(table), class_task(table, 0)
    assert class_ is not None
    config = quick(dropout=0.0)
    features = Features(table, standard_of(table, transformation, 0), CPU, torch.float32)

    def run() -> dict[Setting, Trained]:
        parts = [
            BatchPart(transformation, stream_of(transformation, 0), 18),
            BatchPart(replace(class_, first=8), stream_of(class_, 0), 18),
        ]
        return train(features, parts, settings_of(transformation, class_, config), config, 20)

    ours = run()
    assert graphs.replays == [2, 2, 20 - cuda.WARM]
    monkeypatch.setattr(heads, "replays", lambda device: False)
    assert_same(ours, run())


def test_dropout_is_keyed_by_seed_and_step(make_table: Make, quick: Quick, graphs: FakeGraphs) -> None:
    """Independent of what is captured together; other seeds draw other units."""
    table, setting = make_table(), Setting(1e-2, 0.1, 16)
    config = quick(dropout=0.5)
    found = []
    for ahead in (64, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "AHEAD", ahead)
            found.append(learned(table, [setting], config, 20))
    assert_same(*found, bits=True)
    without = learned(table, [setting], quick(dropout=0.0), 20)
    assert not torch.equal(found[0][setting].heads.w1, without[setting].heads.w1)


def test_where_steps_are_replayed() -> None:
    assert [heads.replays(torch.device(kind)) for kind in ("cuda", "cpu")] == [True, False]


def test_a_script_says_what_its_steps_are(make_table: Make) -> None:
    table = make_table()
    task = the_task(table)
    features = Features(table, standard_of(table, task, 0), CPU, torch.float32)

    def part() -> BatchPart:
        return BatchPart(task, stream_of(task, 0), 8)

    batches, stream = Batches(features, [part()], 3, 5, gathered=False), part().stream
    place = batches.script.word_nP.data_ptr()
    for rates, taken in (([0.1, 0.2, 0.3, 0.4], 0), ([0.5, 0.6], 3)):
        queue = batches.block(rates)
        assert len(queue) == min(len(rates), 3)
        now = StepSchedule.of(1, queue.script.rows, CPU)
        for i in range(len(queue)):
            queue.script.step(torch.tensor([i]), now)
            t, n = (v.numpy() for v in stream.rows(8 * (taken + i), 8))
            assert now.row_nB.tolist() == [(t * len(table.keys) + n).tolist()]
            assert now.targets[0].tolist() == [task.answers(t, n).tolist()]
            assert float(now.now_n3[0, 0]) == pytest.approx(rates[i])
            assert float(now.now_n3[0, 1]) == pytest.approx(1 - 0.9 ** (taken + i + 1), rel=1e-6)
    assert place == batches.script.word_nP.data_ptr()
    batches.close()


class Calls(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_schedule_takes_as_many_operations_however_long_it_is(make_table: Make) -> None:
    table = make_table()
    task = the_task(table)
    features = Features(table, standard_of(table, task, 0), CPU, torch.float32)
    part = BatchPart(task, stream_of(task, 0), 8)
    counts = []
    for steps in (2, 50):
        batches = Batches(features, [part], steps, steps, gathered=False)
        with Calls() as calls:
            batches.block([1.0] * steps)
        counts.append(calls.count)
    assert counts[0] == counts[1]
