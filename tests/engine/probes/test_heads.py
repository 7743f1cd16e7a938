"""Banks of heads, blocks of batches, features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick

from substyle.engine.probes import batches
from substyle.engine.probes.batches import Batches, BatchPart, Features
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.probes.dataset import hold, standard_of
from substyle.engine.probes.heads import HeadBank, Setting
from substyle.engine.probes.tasks import class_task, stream_of, transformation_task
from substyle.engine.probes.trainer import Validation

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("how", "width"), [("float16", 0), ("int8", 0), ("float16", 7)])
def test_rows_that_are_standardised_in_advance_are_the_same(
    how: str, width: int, dtype: torch.dtype, make_table: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_AT_ONCE", 2000)
    table = make_table()
    task = transformation_task(table, 0)
    assert task is not None
    held = hold(table, ProbeConfig(expert=ExpertConfig(table=how)), CPU)
    features = Features(held, standard_of(table, task, 0), CPU, dtype)
    features = features.projected(width, 0) if width else features
    rows = len(table.transformations) * len(table.keys)

    def first(steps: int) -> tuple[torch.Tensor, bool]:
        made = Batches(features, [BatchPart(task, stream_of(task, 0), 24)], 4, steps)
        x_nBD = made.block([0.1] * 4).x_nBD
        assert x_nBD is not None
        return x_nBD, made.ready_RD is not None

    few, ready = first(2 * rows // 24 - 1)
    assert not ready
    many, ready = first(2 * rows // 24)
    assert ready
    torch.testing.assert_close(few, many, rtol=0.0 if not width else 1e-2, atol=0.0 if not width else 1e-2)
    monkeypatch.setattr(batches, "KEPT", 1)
    assert not first(10**6)[1]


@pytest.mark.parametrize("width", [0, 8])
def test_weights_of_a_setting_are_copies(width: int) -> None:
    """Of all seeds in order, whether heads train in turn or together."""
    settings = [Setting(lr, 0.0, width) for lr in (1e-2, 1e-3, 1e-4)]
    own = HeadBank.of(settings, 20, 5, [0, 1], 0.0, CPU)
    assert len(own.pieces) == (6 if width else 1)
    for g in range(3):
        for s in range(2):
            piece, k = (own.pieces[2 * g + s], 0) if width else (own.pieces[0], 2 * g + s)
            for p in piece.parameters:
                p[k] = 10 * g + s
    for g in range(3):
        found = own.parameters(g)
        assert [len(p) for p in found] == [2] * (4 if width else 2)
        for p in found:
            assert (p[0] == 10 * g).all()
            assert (p[1] == 10 * g + 1).all()
            p.zero_()
    assert all(float(p.max()) == 21.0 for p in own.pieces[-1].parameters)


@pytest.mark.parametrize("width", [0, 16])
def test_a_bank_is_judged_head_by_head_in_its_order(make_table: Make, quick: Quick, width: int) -> None:
    table = make_table()
    task = transformation_task(table, 0)
    assert task is not None
    features = Features(table, standard_of(table, task, 0), CPU, torch.float32)
    validation = Validation(features, task, quick())
    own = HeadBank.of([Setting(1e-2, 0.0, width), Setting(1e-3, 0.0, width)], 20, 8, [0, 1], 0.0, CPU)
    for i, piece in enumerate(own.pieces):
        piece.w1.mul_(torch.arange(1.0, 1.0 + len(piece))[:, None, None] * (i + 1))
    accuracy, loss = validation.judge_bank(own)
    singles = [piece.select([k]) for piece in own.pieces for k in range(len(piece))]
    for k, single in enumerate(singles):
        one_accuracy, one_loss = validation.judge(single)
        np.testing.assert_allclose((accuracy[k], loss[k]), (one_accuracy[0], one_loss[0]), rtol=1e-5)
    assert len(set(loss.tolist())) == 4


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("contiguous", [True, False])
def test_features_on_every_path(make_table: Make, kind: type, contiguous: bool) -> None:
    """Tables of any type and order give the same rows; so does memory given."""
    table = make_table()
    x_TND = table.x_TND.astype(kind)
    if not contiguous:
        x_TND = np.asfortranarray(x_TND)
    table = replace(table, x_TND=x_TND)
    task = transformation_task(table, 0)
    assert task is not None
    t, n = task.rows(task.train_T, task.train_N)
    features = Features(table, standard_of(table, task, 0), CPU, torch.bfloat16)
    found, full, given = features(t, n), features.full()(t, n), torch.empty(len(t), 20, dtype=torch.bfloat16)
    placed = features.held.rows(t, n)
    assert features.of(placed, placed.row_nB, given) is given
    assert torch.equal(given, found)
    assert (found.dtype, full.dtype, features.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    rows = torch.from_numpy(x_TND[t, n].astype(np.float32))
    assert torch.equal(full, (rows - features.mean) * features.scale)
    assert torch.equal(found, full.to(torch.bfloat16))


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
