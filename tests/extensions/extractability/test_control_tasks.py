"""Control tasks and shuffled labels on embeddings whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.engine.probes.conftest import Make, Quick, features_of

from substyle.engine.extensions.extractability import control_tasks
from substyle.engine.extensions.extractability.control_tasks import control, shuffled
from substyle.engine.probes.batches import Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.linear import Linear, fit_heads, fit_linear, training_rows_of
from substyle.engine.probes.mlp import train_mlp
from substyle.engine.probes.tasks import Task
from substyle.engine.store.table import EmbeddingTable

pytestmark = pytest.mark.usefixtures("one_thread")


def photographs_only(table: EmbeddingTable) -> EmbeddingTable:
    """Embeddings that are one-hot vectors of the photograph, whatever the transformation."""
    variants, images, _ = table.x_TND.shape
    return replace(table, x_TND=np.broadcast_to(np.eye(images, dtype=np.float16), (variants, images, images)).copy())


def weakly_regularised(features: Features, task: Task, config: ProbeConfig) -> Linear:
    fit = fit_heads(training_rows_of(features, task), config, [100.0])
    return replace(fit_linear(features, task, config), C=100.0, fit=fit)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_memorised_photographs_are_not_selective(make_table: Make, quick: Quick, head: str) -> None:
    """Any label of a photograph can be read from its one-hot vector, at random or not."""
    features, task = features_of(photographs_only(make_table(images=60)), "class")
    config = quick(mlp_steps=150)
    made = weakly_regularised(features, task, config) if head == "linear" else train_mlp(features, task, config)
    found = control(features, task, made, config, None)
    assert found["control"]["value"] == pytest.approx(1.0, abs=0.02)
    assert found["task"]["value"] == pytest.approx(1.0, abs=0.02)
    assert abs(found["selectivity"]["value"]) <= 0.02
    assert "memorised" not in found


@pytest.mark.parametrize("name", ["transformation", "class"])
def test_shuffled_labels_are_at_chance_and_true_ones_are_not(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    features, task = features_of(make_table(images=200, style=4.0), name)
    config = quick()
    made = fit_linear(features, task, config)
    found = shuffled(features, task, made, config)
    low, high = found["range95"]
    assert low <= found["accuracy"] <= high
    assert found["at_chance"]
    assert low < found["expected"] < high
    monkeypatch.setattr(control_tasks, "shuffled_task", lambda task, seed: task)
    assert not shuffled(features, task, made, config)["at_chance"]
