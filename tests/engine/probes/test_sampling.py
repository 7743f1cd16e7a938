from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from substyle.engine.probes.tasks import Stream, Task, coarse_task, fine_task, semantic_task, stream_of
from substyle.engine.store.table import EmbeddingTable

Make = Callable[..., EmbeddingTable]


def many(stream: Stream, batches: int = 40, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rows = [stream.batch(count) for _ in range(batches)]
    assert all(len(t) == len(n) == count for t, n in rows)
    return np.concatenate([t for t, _ in rows]), np.concatenate([n for _, n in rows])


def need(task: Task | None) -> Task:
    assert task is not None
    return task


@pytest.mark.parametrize("sampling", ["variant", "cross"])
def test_held_out_never_comes(make_table: Make, sampling: str) -> None:
    """Held-out transformations are in neither training nor validation rows of the coarse task."""
    table = make_table()
    task = need(coarse_task(table, 0))
    t, n = many(stream_of(task, sampling, 0))
    held_out = [i for i, role in enumerate(table.roles) if role == "held_out"]
    assert not np.isin(t, held_out).any()
    assert set(t) == {i for i, role in enumerate(table.roles) if role == "train"}
    assert set(n) == set(table.rows(0))
    val_t, val_n = task.rows(task.train_T, task.val_N)
    assert not np.isin(val_t, held_out).any()
    assert set(val_n) == set(table.rows(1))


@pytest.mark.parametrize("sampling", ["variant", "cross"])
@pytest.mark.parametrize("make_task", [fine_task, coarse_task, semantic_task])
def test_only_rows_that_count_come(
    make_table: Make, sampling: str, make_task: Callable[[EmbeddingTable, int], Task | None]
) -> None:
    table = make_table()
    distinct = np.random.default_rng(1).random(table.distinct_TN.shape) < 0.3
    distinct[0] = True
    distinct[4] = False  # never differs from identity
    table = replace(table, distinct_TN=distinct)
    task = need(make_task(table, 0))
    t, n = many(stream_of(task, sampling, 0))
    assert distinct[t, n].all()
    assert np.isin(n, table.rows(0)).all()
    assert 4 not in t


def test_coarse_classes_are_balanced(make_table: Make) -> None:
    """Each class has probability 1/4, uniform over its transformations."""
    table = make_table()
    task = need(coarse_task(table, 0))
    t, _ = many(stream_of(task, "variant", 0), batches=100)
    share = np.bincount(task.answers(t, t), minlength=4) / len(t)
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / len(t))
    blur = np.bincount(t, minlength=8)[[1, 2]] / len(t)
    assert np.abs(blur - 0.125).max() < 4 * np.sqrt(0.125 * 0.875 / len(t))


def test_variants_of_an_image_are_equally_likely(make_table: Make) -> None:
    """Also with indistinct variants; all images are drawn equally often."""
    distinct = np.ones((8, 120), bool)
    distinct[3:7, ::2] = False
    table = make_table(distinct_TN=distinct)
    task = need(fine_task(table, 0))
    t, n = many(stream_of(task, "variant", 0), batches=150, count=len(task.train_N))
    assert set(np.bincount(n)[task.train_N]) == {150}
    of_even = np.bincount(t[n % 2 == 0], minlength=8)
    assert of_even[3:7].sum() == 0
    share = of_even[of_even > 0] / of_even.sum()
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / of_even.sum())


def test_cross_product_takes_each_row_once_an_epoch(make_table: Make) -> None:
    table = make_table()
    task = need(fine_task(table, 0))
    rows = len(task.train_N) * 8
    stream = stream_of(task, "cross", 0)
    for _ in range(3):  # also with batches that straddle epochs
        parts = [stream.batch(rows // 4) for _ in range(4)]
        seen = {(int(a), int(b)) for t, n in parts for a, b in zip(t, n, strict=True)}
        assert len(seen) == rows


def test_a_stream_depends_on_its_seed_alone(make_table: Make) -> None:
    task = need(fine_task(make_table(), 0))
    same = [many(stream_of(task, "variant", 3)) for _ in range(2)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], many(stream_of(task, "variant", 4)))


def test_a_batch_may_be_larger_than_the_table(make_table: Make) -> None:
    task = need(semantic_task(make_table(images=10, classes=2), 0))
    t, n = stream_of(task, "variant", 0).batch(100)
    assert (t == 0).all()
    assert set(n) == set(task.train_N)
