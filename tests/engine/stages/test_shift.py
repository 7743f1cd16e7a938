"""Losses under a shift: which photographs are paired."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from substyle.engine.probes.checkpoint import Probe
from substyle.engine.stages.shift.accuracy import accuracy
from substyle.engine.stages.shift.config import ShiftConfig
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_heads import Heads


class Reader(Probe):
    """A probe that reads the class in the only number of an embedding."""

    def __init__(self) -> None:
        nothing = torch.empty(0)
        super().__init__(
            Heads(nothing, nothing), {"task": "class", "outputs": [{"name": "class", "labels": ["a", "b"]}]}
        )

    def predict(self, x_BD: np.ndarray) -> np.ndarray:
        return np.eye(2, dtype=np.float32).take(x_BD[:, 0].astype(int), axis=0)


def config_of(max_images: int, by: Any = "photograph") -> ShiftConfig:  # noqa: ANN401
    return ShiftConfig({}, "", {}, "own", (), max_images, 2_000, by, 0)


def some() -> EmbeddingTable:
    """40 test photographs, of which the reader mistakes some."""
    rng = np.random.default_rng(0)
    label_N = rng.integers(2, size=40)
    return EmbeddingTable(
        backbone="b",
        x_TND=np.where(rng.random(40) < 0.3, 1 - label_N, label_N).astype(np.float32)[None, :, None],
        transformations=("identity",),
        kind=("identity",),
        roles=("train",),
        keys=tuple(f"{i % 7}/{i}.jpg" for i in range(40)),
        label_N=label_N,
        class_names=("a", "b"),
        split_N=np.full(40, TEST, np.int8),
        distinct_TN=np.ones((1, 40), np.bool_),
    )


def part(table: EmbeddingTable, rows: np.ndarray) -> EmbeddingTable:
    assert isinstance(table.x_TND, np.ndarray)
    chosen = {"x_TND": table.x_TND[:, rows], "label_N": table.label_N[rows], "split_N": table.split_N[rows]}
    return replace(table, **chosen, keys=tuple(table.keys[i] for i in rows), distinct_TN=table.distinct_TN[:, rows])


@pytest.mark.parametrize("by", ["photograph", "folder"])
def test_scores_of_the_same_photographs_are_paired_in_any_order(by: Any) -> None:  # noqa: ANN401
    """Stores list photographs in the order in which they were added."""
    table = some()
    other = part(table, np.random.default_rng(1).permutation(40))
    config = config_of(2_000, by)
    found = [accuracy(each, Reader(), np.arange(40), [0], config) for each in (table, other)]
    assert found[0] is not None
    assert found[1] is not None
    assert not (found[0][0] - found[1][0]).replicates_R.any()


def test_absent_variants_are_not_scored() -> None:
    """Their rows are those of the unchanged photographs, which would count as right."""
    table, absent_N = some(), np.arange(40) % 3 == 0
    assert isinstance(table.x_TND, np.ndarray)
    there = table.label_N == table.x_TND[0, :, 0]
    absent = replace(table, absent_TN=absent_N[None])
    found = [accuracy(each, Reader(), np.arange(40), [0], config_of(9)) for each in (table, absent)]
    assert [each and each[0].value for each in found] == pytest.approx([there.mean(), there[~absent_N].mean()])
    assert [each and each[1] for each in found] == [40, 40 - absent_N.sum()]
    nobody = replace(table, absent_TN=np.ones((1, 40), np.bool_))
    assert accuracy(nobody, Reader(), np.arange(40), [0], config_of(9)) is None
