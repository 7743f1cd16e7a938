from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.engine.probes.conftest import Make

from substyle.engine.probes.tasks import class_task, identity, images_of, kind_task, transformation_task
from substyle.errors import SubstyleError


def test_answers(make_table: Make) -> None:
    table = make_table()
    transformation, kind, class_ = transformation_task(table, 0), kind_task(table, 0), class_task(table, 0)
    assert transformation is not None
    assert kind is not None
    assert class_ is not None
    t, n = np.array([0, 3, 5]), np.array([7, 8, 9])
    assert [transformation.labels[a] for a in transformation.answers(t, n)] == ["identity", "blur_c", "noise_b"]
    assert [kind.labels[a] for a in kind.answers(t, n)] == ["identity", "blur", "noise"]
    assert [class_.labels[a] for a in class_.answers(t, n)] == [table.class_names[table.label_N[i]] for i in n]
    most = np.bincount(table.label_N[table.rows(2)]).max() / len(table.rows(2))
    assert (transformation.chance, kind.chance, class_.chance) == (1 / 8, 1 / 4, most)


def test_chance_is_what_the_most_frequent_label_gets(make_table: Make) -> None:
    """Severities are one label of several transformations, and classes have unequally many photographs."""
    table = make_table()
    names = ("identity", *(f"blur@{severity}" for severity in range(1, len(table.transformations))))
    transformation = transformation_task(replace(table, transformations=names), 0)
    assert transformation is not None
    assert transformation.labels == ("identity", "blur")
    assert transformation.chance == 1 - 1 / len(names)
    class_ = class_task(replace(table, label_N=np.where(np.arange(120) % 10 == 0, table.label_N, 0)), 0)
    assert class_ is not None
    always = class_.answer[class_.test_N] == class_.labels.index(table.class_names[0])
    assert class_.chance == always.mean() > 0.8
    # a label for each variant of each photograph
    rows = np.arange(len(names))[:, None] % 2 * np.ones(120, np.int64)
    assert replace(transformation, answer=rows).chance == np.ceil(len(names) / 2) / len(names)


def test_an_empty_validation_split_is_carved_from_training_images(make_table: Make) -> None:
    table = make_table()
    table = replace(table, split_N=np.where(table.split_N == 1, 0, table.split_N).astype(np.int8))
    train, val, test = images_of(table, np.ones(120, bool), 0)
    assert len(val) == len(table.rows(0)) // 10
    assert sorted([*train, *val]) == list(table.rows(0))
    assert list(test) == list(table.rows(2))
    again = images_of(table, np.ones(120, bool), 0)
    assert np.array_equal(val, again[1])
    pairs = np.arange(120) // 2 * 2
    paired = replace(table, split_N=np.repeat(table.split_N[::2], 2), first_N=pairs)
    train, val, _ = images_of(paired, np.ones(120, bool), 0)
    assert len(val) >= len(train) // 10
    assert not set(pairs[train]) & set(pairs[val])
    large = np.where((table.split_N == 0) & (np.arange(120) > 20), 21, np.arange(120))  # most training images are alike
    train, val, _ = images_of(replace(table, first_N=large), np.ones(120, bool), 0)
    assert len(val) == len(table.rows(0)) // 10
    assert {21} == set(large[train]) - set(range(21))


@pytest.mark.parametrize("split", [0, 2])
def test_an_empty_split_is_refused(make_table: Make, split: int) -> None:
    table = make_table()
    other = np.where(table.split_N == split, 1, table.split_N).astype(np.int8)
    counts = [(table.split_N == s).sum() for s in (0, 1, 2)]
    counts[1], counts[split] = counts[1] + counts[split], 0
    with pytest.raises(SubstyleError, match="{}, {} and {}".format(*counts)):
        transformation_task(replace(table, split_N=other), 0)


def test_a_single_image_is_refused(make_table: Make) -> None:
    with pytest.raises(SubstyleError, match="0, 0 and 1"):
        transformation_task(make_table(images=1), 0)


def test_no_identity_is_refused(make_table: Make) -> None:
    with pytest.raises(SubstyleError, match="no identity"):
        identity(make_table(suite=(("blur_a", "blur", "train"), ("noise_a", "noise", "train"))))


def test_no_class_task_without_two_classes(make_table: Make) -> None:
    assert class_task(make_table(classes=0), 0) is None
    assert class_task(make_table(classes=1), 0) is None
    table = make_table(classes=2)
    only_one_in_training = np.where(table.split_N == 0, 0, table.label_N)
    assert class_task(replace(table, label_N=only_one_in_training), 0) is None
    unlabelled_test = np.where(table.split_N == 2, -1, table.label_N)
    assert class_task(replace(table, label_N=unlabelled_test), 0) is None


def test_a_class_without_training_images_is_always_wrong(make_table: Make) -> None:
    table = make_table(classes=3)
    label = table.label_N.copy()
    label[(table.split_N != 2) & (label == 2)] = -1
    task = class_task(replace(table, label_N=label), 0)
    assert task is not None
    assert task.labels == ("class-0", "class-1")
    unknown = task.test_N[label[task.test_N] == 2]
    assert len(unknown) > 0
    assert (task.answers(unknown * 0, unknown) == -1).all()


@pytest.mark.parametrize("most", [1, 17, 200, 10_000])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_a_sample_of_rows(make_table: Make, most: int, share: float) -> None:
    """Distinct valid rows, as many as requested or all."""
    distinct = np.random.default_rng(0).random((8, 120)) < share
    task = transformation_task(make_table(distinct_TN=distinct), 0)
    assert task is not None
    t, n = task.sample(task.train_N, most, np.random.default_rng(1))
    every = set(zip(*(v.tolist() for v in task.rows(task.train_T, task.train_N)), strict=True))
    rows = set(zip(t.tolist(), n.tolist(), strict=True))
    assert rows <= every
    assert len(rows) == len(t) == min(most, len(every))


def test_suites_without_kind_classes_to_tell_apart(make_table: Make) -> None:
    """Identity alone gives no task; held-out transformations of an unknown class are not scored."""
    assert kind_task(make_table(suite=(("identity", "identity", "train"), ("blur_a", "blur", "held_out"))), 0) is None
    suite = (("identity", "identity", "train"), ("blur_a", "blur", "train"), ("noise_b", "noise", "held_out"))
    task = kind_task(make_table(suite=suite), 0)
    assert task is not None
    assert task.labels == ("identity", "blur")
    assert list(task.score_T) == [0, 1]
    assert transformation_task(make_table(suite=suite[:1]), 0) is None
