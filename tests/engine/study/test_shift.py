"""Losses under a shift: which photographs are paired."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from substyle.engine.config import AnalysisConfig
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study.shift import _accuracy


class Reader:
    """A probe that reads the class in the only number of an embedding."""

    labels: ClassVar = {"class": ("a", "b")}

    def predict(self, x_BD: np.ndarray) -> np.ndarray:
        return np.eye(2)[x_BD[:, 0].astype(int)]


@pytest.mark.parametrize("by", ["photograph", "folder"])
def test_scores_of_the_same_photographs_are_paired_in_any_order(by: Any) -> None:  # noqa: ANN401
    """Stores list photographs in the order in which they were added."""
    rng = np.random.default_rng(0)
    label_N = rng.integers(2, size=40)
    table = EmbeddingTable(
        backbone="b",
        x_TND=np.where(rng.random(40) < 0.3, 1 - label_N, label_N).astype(np.float32)[None, :, None],
        transformations=("identity",),
        coarse=("identity",),
        roles=("train",),
        keys=tuple(f"{i % 7}/{i}.jpg" for i in range(40)),
        label_N=label_N,
        class_names=("a", "b"),
        split_N=np.full(40, TEST, np.int8),
        distinct_TN=np.ones((1, 40), np.bool_),
    )
    order = rng.permutation(40)
    other = replace(
        table, x_TND=table.x_TND[:, order], keys=tuple(table.keys[i] for i in order), label_N=label_N[order]
    )
    config = AnalysisConfig(resample_by=by)
    found = [_accuracy(each, Reader(), np.arange(40), [0], config) for each in (table, other)]  # type: ignore[arg-type]
    assert found[0] is not None
    assert found[1] is not None
    assert (found[0][0] - found[1][0]).ci95 == [0.0, 0.0]
