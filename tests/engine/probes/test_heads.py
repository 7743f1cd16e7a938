"""Banks of heads, blocks of batches, features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.engine.probes.conftest import CPU, Make

from substyle.engine.probes.batches import Batches, BatchPart, Features
from substyle.engine.probes.dataset import standard_of
from substyle.engine.probes.tasks import class_task, stream_of, transformation_task

pytestmark = pytest.mark.usefixtures("one_thread")


def test_batches_are_the_stream_s_in_blocks_of_any_size(make_table: Make) -> None:
    """A block equals the same batches one by one; the two parts of a batch are concatenated."""
    table = make_table()
    transformation, class_ = transformation_task(table, 0), class_task(table, 0)
    assert transformation is not None
    assert class_ is not None
    features = Features(table, standard_of(table, transformation, 0), CPU, torch.float32)

    def parts() -> list[BatchPart]:
        return [
            BatchPart(transformation, stream_of(transformation, 0), 24),
            BatchPart(replace(class_, first=8), stream_of(class_, 0), 9),
        ]

    made, reference = Batches(features, parts(), 4, 9), parts()
    assert made.script.rows == [slice(0, 24), slice(24, 33)]
    done = 0
    for rates in ([0.1, 0.2, 0.3, 0.4], [0.5], [0.6, 0.7]):
        block = made.block(rates)
        assert len(block) == len(rates)
        assert block.script.now_n3[: len(rates), 0].tolist() == rates
        assert block.x_nBD is not None
        assert made.x_nBD is not None
        assert block.x_nBD.data_ptr() == made.x_nBD.data_ptr()
        for i in range(len(block)):
            for part, rows, target_nB in zip(reference, block.script.rows, block.script.targets, strict=True):
                t, n = (v.numpy() for v in part.stream.rows((done + i) * part.count, part.count))
                assert torch.equal(block.x_nBD[i, rows], features(t, n))
                assert target_nB[i].tolist() == part.task.answers(t, n).tolist()
        done += len(block)


@pytest.mark.parametrize("width", [0, 4], ids=["whole", "projected"])
def test_float64_features_are_those_of_float32(make_table: Make, width: int) -> None:
    table = make_table()
    task = transformation_task(table, 0)
    assert task is not None
    t, n = task.rows(task.train_T, task.train_N)
    features = Features(table, standard_of(table, task, 0), CPU, torch.bfloat16)
    own = features.projected(width, 0) if width else features
    double = own.full(torch.float64)(t, n)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), own.full()(t, n), atol=1e-5, rtol=1e-5)
