"""Training of heads: together, in turn and replayed as alone; validation, and agreement of two trainings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import Make, Quick, features_of
from tests.fake_graphs import FakeGraphs

from substyle.engine import cuda
from substyle.engine.probes import heads
from substyle.engine.probes.batches import BatchPart
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.mlp import settings_of
from substyle.engine.probes.tasks import class_task, stream_of
from substyle.engine.probes.trainer import Trained, Validation, train
from substyle.engine.store.table import EmbeddingTable

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = [0, 1]
Found = dict[Setting, Trained]


def learned(table: EmbeddingTable, settings: list[Setting], config: ProbeConfig, steps: int) -> Found:
    features, task = features_of(table, "transformation")
    return train(features, [BatchPart(task, stream_of(task, 0), 64)], settings, config, steps, seeds=SEEDS)


def assert_same(ours: Found, theirs: Found) -> None:
    assert ours.keys() == theirs.keys()
    for setting, a in ours.items():
        b = theirs[setting]
        assert a.steps == b.steps
        for p, q in zip(a.heads.parameters, b.heads.parameters, strict=True):
            assert len(p) == len(SEEDS)
            torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-3)
        assert a.validation == pytest.approx(b.validation, abs=0.005)
        assert a.loss == pytest.approx(b.loss, rel=1e-3)


def test_a_grid_trains_as_its_settings_alone_would(make_table: Make, quick: Quick) -> None:
    """Two widths, rates and seeds trained together equal separate trainings."""
    table, config = make_table(), quick()
    settings = [Setting(1e-2, 0.1, 8), Setting(3e-3, 0.0, 8), Setting(1e-2, 0.1, 16), Setting(1e-2, 0.0, 0)]
    together = learned(table, settings, config, 20)
    assert list(together) == settings
    for setting in settings:
        assert_same({setting: together[setting]}, learned(table, [setting], config, 20))


def test_twins_in_turn_learn_what_they_learn_together(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they are one call of the step; in turn a call is one head's, of the rows that it learns."""
    table = make_table()
    features, transformation = features_of(table, "transformation")
    class_ = class_task(table, 0)
    assert class_ is not None
    config = quick(multitask_learning_rates=(1e-2,), dropout=0.2)
    settings = settings_of(transformation, class_, config)
    found: list[Found] = []
    for in_turn in (True, False):
        monkeypatch.setattr(heads, "takes_turns", lambda width, device, in_turn=in_turn: in_turn)
        streams = ((transformation, stream_of(transformation, 0)), (replace(class_, first=8), stream_of(class_, 0)))
        parts = [BatchPart(task, stream, 18) for task, stream in streams]
        found.append(train(features, parts, settings, config, 8, seeds=SEEDS))
    assert len(found[0]) == 3  # the joint probe and its twins
    assert_same(*found)


@pytest.mark.parametrize("width", [0, 16])
def test_replayed_steps_learn_what_the_host_s_do(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """On fake CUDA graphs, with two seeds, individual rates and dropout."""
    graphs, table, config = FakeGraphs(), make_table(), quick(dropout=0.2)
    monkeypatch.setattr(cuda, "_capture", graphs.capture)
    monkeypatch.setattr(heads, "takes_turns", lambda width, device: False)
    settings = [Setting(lr, 0.1, width) for lr in (1e-2, 3e-3, 1e-3)]
    monkeypatch.setattr(heads, "replays", lambda device: True)
    ours = learned(table, settings, config, 24)
    assert graphs.replays == [2, 24 - cuda.WARM], "the validation before the steps and after them, and the steps"
    monkeypatch.setattr(heads, "replays", lambda device: False)
    assert_same(ours, learned(table, settings, config, 24))
    assert len(graphs.replays) == 2


def test_standardisation(make_table: Make) -> None:
    """Compared with numpy on the training rows; constant features become 0."""
    table = make_table()
    table.x_TND[:, :, 3] = 7.0
    features, task = features_of(table, "transformation")
    t, n = task.rows(task.train_T, task.train_N)
    rows = table.x_TND[t, n].astype(np.float64)
    expected = (rows - rows.mean(0)) / np.where(np.arange(20) == 3, np.inf, rows.std(0))
    np.testing.assert_allclose(features(t, n).numpy(), expected, atol=1e-4)


def test_kind_labels_count_alike(make_table: Make, quick: Quick) -> None:
    features, task = features_of(make_table(), "kind")
    validation = Validation(features, task, quick())
    sums = torch.zeros(len(task.labels), dtype=torch.float64).index_add_(0, validation.answers, validation.weight)
    np.testing.assert_allclose(sums[sums > 0], 1.0 / int((sums > 0).sum()))
    assert len(set(torch.bincount(validation.answers).tolist())) > 1


@pytest.mark.parametrize(
    ("rows", "gains", "losses", "agree"),
    [
        (1000, 5, 0, True),  # half a point
        (1000, 6, 0, False),  # six rows of 1000: 0.6 points, of which one standard error is 0.24
        (1000, 20, 14, False),  # 0.6 points, of which one standard error is 0.58
        (1000, 30, 24, True),  # 0.6 points, of which one standard error is 0.73
        (100, 1, 0, True),  # a single row
    ],
)
def test_half_a_point_or_one_standard_error(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch, rows: int, gains: int, losses: int, agree: bool
) -> None:
    validation = Validation(*features_of(make_table(), "transformation"), quick())
    validation.weight = torch.full((rows,), 1 / rows, dtype=torch.float64)
    a, b = torch.zeros(2, 1, rows, dtype=torch.bool)
    a[0, :gains] = True
    b[0, gains : gains + losses] = True
    monkeypatch.setattr(validation, "right", lambda heads: heads)
    difference, found = validation.difference(a, b)  # type: ignore[arg-type]
    assert difference == pytest.approx((gains - losses) / rows)
    assert found is agree
