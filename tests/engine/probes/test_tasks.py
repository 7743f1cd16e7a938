from __future__ import annotations

from dataclasses import replace

import numpy as np
from tests.engine.probes.conftest import Make

from substyle.engine.probes.tasks import class_task, transformation_task


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
