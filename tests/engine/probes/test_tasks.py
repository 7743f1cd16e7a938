from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.engine.probes.conftest import Make

from substyle.engine.probes.tasks import class_task, identity, transformation_task
from substyle.errors import SubstyleError


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


def test_no_identity_is_refused(make_table: Make) -> None:
    with pytest.raises(SubstyleError, match="no identity"):
        identity(make_table(suite=(("blur_a", "blur", "train"), ("noise_a", "noise", "train"))))


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
