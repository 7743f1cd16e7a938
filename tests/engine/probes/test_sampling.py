from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import Make

from substyle.engine.probes.tasks import Stream, Task, class_task, kind_task, stream_of, transformation_task
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels import philox
from substyle.kernels.shuffle import Shuffle


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


@pytest.mark.parametrize("make_task", [transformation_task, kind_task, class_task])
def test_only_rows_that_count_come(make_table: Make, make_task: Callable[[EmbeddingTable, int], Task | None]) -> None:
    table = make_table()
    distinct = np.random.default_rng(1).random(table.distinct_TN.shape) < 0.3
    distinct[0] = True
    distinct[4] = False  # never differs from identity
    table = replace(table, distinct_TN=distinct)
    task = need(make_task(table, 0))
    t, n = many(stream_of(task, 0))
    assert distinct[t, n].all()
    assert np.isin(n, table.rows(0)).all()
    assert 4 not in t


def test_kind_classes_are_balanced(make_table: Make) -> None:
    """Each class has probability 1/4, uniform over its transformations."""
    table = make_table()
    task = need(kind_task(table, 0))
    t, _ = many(stream_of(task, 0), batches=100)
    share = np.bincount(task.answers(t, t), minlength=4) / len(t)
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / len(t))
    blur = np.bincount(t, minlength=8)[[1, 2]] / len(t)
    assert np.abs(blur - 0.125).max() < 4 * np.sqrt(0.125 * 0.875 / len(t))


def test_variants_of_an_image_are_equally_likely(make_table: Make) -> None:
    """Also with indistinct variants; all images are drawn equally often."""
    distinct = np.ones((8, 120), bool)
    distinct[3:7, ::2] = False
    table = make_table(distinct_TN=distinct)
    task = need(transformation_task(table, 0))
    t, n = many(stream_of(task, 0), batches=150, count=len(task.train_N))
    assert set(np.bincount(n)[task.train_N]) == {150}
    of_even = np.bincount(t[n % 2 == 0], minlength=8)
    assert of_even[3:7].sum() == 0
    share = of_even[of_even > 0] / of_even.sum()
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / of_even.sum())


@pytest.mark.parametrize("make_task", [transformation_task, kind_task])
def test_any_rows_can_be_drawn_alone(make_table: Make, make_task: Callable[[EmbeddingTable, int], Task | None]) -> None:
    """Also across epochs, and far beyond 2**32 rows."""
    stream = stream_of(need(make_task(make_table(), 0)), 0)
    for start in (0, (1 << 40) + 3):
        t, n = stream.rows(start, 3000)
        for first, count in ((0, 1), (1, 7), (65, 130), (2999, 1)):
            own = stream.rows(start + first, count)
            assert np.array_equal(np.stack(own), np.stack([t[first : first + count], n[first : first + count]]))


@pytest.mark.parametrize("make_task", [transformation_task, kind_task])
def test_drawing_never_waits_for_the_device(
    make_table: Make, make_task: Callable[[EmbeddingTable, int], Task | None]
) -> None:
    """Tensors without values cannot be read by the host."""
    stream = stream_of(need(make_task(make_table(), 0)), 0, torch.device("meta"))
    assert [v.shape for v in stream.rows(64, 100)] == [(100,), (100,)]


def test_rows_by_words_in_numpy(make_table: Make) -> None:
    """The words of `philox.words`, 31 bits above a count; a seed is the key, a task's name the counter's upper half."""
    distinct = np.random.default_rng(1).random((8, 120)) < 0.5
    distinct[0] = True
    table = make_table(distinct_TN=distinct)
    key = philox.keys_of_seeds([7])
    task = need(transformation_task(table, 0))
    images = Shuffle(len(task.train_N), 7, "order:fine")(torch.arange(500)).numpy()
    words = philox.words(key, "rows:fine", 500)[0].astype(np.int64)
    n = task.train_N[images]
    valid = [task.train_T[distinct[task.train_T, i]] for i in n]
    t = np.array([own[word * len(own) >> 32] for own, word in zip(valid, words, strict=True)])
    assert np.array_equal(np.stack(stream_of(task, 7).rows(0, 500)), np.stack([t, n]))
    task = need(kind_task(table, 0))
    for i, word in enumerate(philox.words(key, "rows:coarse", 1500)[0].astype(np.int64).reshape(500, 3)):
        members = task.train_T[task.answer[task.train_T] == word[0] * len(task.labels) >> 32]
        of = members[word[1] * len(members) >> 32]
        images = task.train_N[distinct[of, task.train_N]]
        expected = [of, images[word[2] * len(images) >> 32]]
        assert [int(v) for v in stream_of(task, 7).rows(i, 1)] == expected


def test_a_class_without_rows_is_never_drawn(make_table: Make) -> None:
    """As in resampled photographs, none of which may show a rarely distinct transformation."""
    distinct = np.ones((8, 120), bool)
    distinct[4] = False
    task = replace(need(kind_task(make_table(), 0)), distinct_TN=distinct)
    t, _ = many(stream_of(task, 0))
    assert set(t) == {0, 1, 2, 6, 7}
    shares = np.bincount(task.answer[t]) / len(t)
    np.testing.assert_allclose(shares[shares > 0], 1 / 3, atol=0.03)


def test_a_stream_depends_on_its_seed_alone(make_table: Make) -> None:
    task = need(transformation_task(make_table(), 0))
    same = [many(stream_of(task, 3)) for _ in range(2)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], many(stream_of(task, 4)))


def test_a_batch_may_be_larger_than_the_table(make_table: Make) -> None:
    task = need(class_task(make_table(images=10, classes=2), 0))
    t, n = stream_of(task, 0).rows(0, 100)
    assert (t == 0).all()
    assert set(n.tolist()) == set(task.train_N)
