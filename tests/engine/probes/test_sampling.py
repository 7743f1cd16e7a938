from __future__ import annotations

import numpy as np
from tests.engine.probes.conftest import Make

from substyle.engine.probes.tasks import Stream, Task, kind_task, stream_of


def many(stream: Stream, batches: int = 40, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    t, n = stream.rows(0, batches * count)
    assert len(t) == len(n) == batches * count
    return t.numpy(), n.numpy()


def need(task: Task | None) -> Task:
    assert task is not None
    return task


def test_held_out_never_comes(make_table: Make) -> None:
    """Held-out transformations are in neither training nor validation rows of the kind task."""
    table = make_table()
    task = need(kind_task(table, 0))
    t, n = many(stream_of(task, 0))
    held_out = [i for i, role in enumerate(table.roles) if role == "held_out"]
    assert not np.isin(t, held_out).any()
    assert set(t) == {i for i, role in enumerate(table.roles) if role == "train"}
    assert set(n) == set(table.rows(0))
    val_t, val_n = task.rows(task.train_T, task.val_N)
    assert not np.isin(val_t, held_out).any()
    assert set(val_n) == set(table.rows(1))
