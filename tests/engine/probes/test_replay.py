"""Training with replayed steps, on fake CUDA graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick
from tests.fake_graphs import FakeGraphs

from substyle.engine import cuda
from substyle.engine.probes import heads
from substyle.engine.probes.batches import BatchPart, Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import hold, standard_of
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.tasks import Task, stream_of, transformation_task
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
