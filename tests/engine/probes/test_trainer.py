from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick

from substyle.engine.probes import heads as bank
from substyle.engine.probes.batches import BatchPart, Features
from substyle.engine.probes.dataset import standard_of
from substyle.engine.probes.heads import Setting
from substyle.engine.probes.mlp import settings_of
from substyle.engine.probes.tasks import Task, class_task, stream_of, transformation_task
from substyle.engine.probes.trainer import train
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_data import draw_masks
from substyle.kernels.probe_heads import Heads, Term

pytestmark = pytest.mark.usefixtures("one_thread")


class Setup:
    """Inputs for training the transformation task."""

    def __init__(self, table: EmbeddingTable) -> None:
        task = transformation_task(table, 0)
        assert task is not None
        self.task = task
        self.features = Features(table, standard_of(table, task, 0), CPU, torch.float32)

    def part(self, count: int = 64) -> BatchPart:
        return BatchPart(self.task, stream_of(self.task, 0), count)


def test_a_grid_trains_as_its_settings_alone_would(make_table: Make, quick: Quick) -> None:
    """Two widths, rates and seeds trained together equal separate trainings."""
    setup, seeds = Setup(make_table()), [0, 1]
    settings = [Setting(1e-2, 0.1, 8), Setting(3e-3, 0.0, 8), Setting(1e-2, 0.1, 16), Setting(1e-2, 0.0, 0)]
    together = train(setup.features, [setup.part()], settings, quick(), 20, seeds=seeds)
    assert list(together) == settings
    for setting in settings:
        alone = train(setup.features, [setup.part()], [setting], quick(), 20, seeds=seeds)[setting]
        assert alone.validation == pytest.approx(together[setting].validation, abs=0.005)
        assert alone.loss == pytest.approx(together[setting].loss, rel=1e-3)
        for ours, theirs in zip(together[setting].heads.parameters, alone.heads.parameters, strict=True):
            assert len(ours) == 2
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@dataclass(frozen=True)
class Call:
    """A recorded call of the step, with copies of features, targets and masks."""

    heads: Heads
    x_BD: torch.Tensor
    terms: Sequence[Term]
    kept_SHB: torch.Tensor | None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Records calls of the step."""
    seen: list[Call] = []
    real = bank.step

    def step(
        heads: Heads,
        x_BD: torch.Tensor,
        terms: Sequence[Term],
        lr_K: torch.Tensor,
        decay_K: torch.Tensor,
        *,
        now_3: torch.Tensor,
        kept_SHB: torch.Tensor | None,
        keep: float,
    ) -> torch.Tensor:
        terms_now = [replace(term, target_B=term.target_B.clone()) for term in terms]
        seen.append(Call(heads, x_BD.clone(), terms_now, None if kept_SHB is None else kept_SHB.clone()))
        return real(heads, x_BD, terms, lr_K, decay_K, now_3=now_3, kept_SHB=kept_SHB, keep=keep)

    monkeypatch.setattr(bank, "step", step)
    return seen


@pytest.mark.parametrize("in_turn", [True, False])
def test_twins_see_the_same_rows_in_the_same_order(
    make_table: Make, quick: Quick, calls: list[Call], monkeypatch: pytest.MonkeyPatch, in_turn: bool
) -> None:
    """Half of each batch are identity rows with their class: the joint probe learns all, each twin its half.

    Together they are one call of the step; in turn a call is one head's, of the rows that it learns. Heads of one seed
    have one dropout mask.
    """
    monkeypatch.setattr(bank, "takes_turns", lambda width, device: in_turn)
    table = make_table()
    transformation, class_ = transformation_task(table, 0), class_task(table, 0)
    assert transformation is not None
    assert class_ is not None
    config, seeds = quick(multitask_learning_rates=(1e-2,)), [0, 1]
    features = Features(table, standard_of(table, transformation, 0), CPU, torch.float32)

    def parts() -> list[BatchPart]:
        return [
            BatchPart(transformation, stream_of(transformation, 0), 18),
            BatchPart(replace(class_, first=8), stream_of(class_, 0), 18),
        ]

    train(features, parts(), settings_of(transformation, class_, config), config, 5, seeds=seeds)
    reference = parts()
    pieces = list({id(call.heads): [c for c in calls if c.heads is call.heads] for call in calls}.values())
    assert [len(of_piece) for of_piece in pieces] == [5] * (3 * len(seeds) if in_turn else 1)
    loss = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]).repeat_interleave(len(seeds), 0)  # joint and two twins
    for i in range(5):
        drawn = [part.stream.rows(i * part.count, part.count) for part in reference]
        (t_a, n_a), (t_b, n_b) = ((t.numpy(), n.numpy()) for t, n in drawn)
        assert (t_b == 0).all()
        x_BD = features(np.r_[t_a, t_b], np.r_[n_a, n_b])
        targets = torch.from_numpy(t_a), torch.from_numpy(class_.answers(t_b, n_b))
        kept = torch.empty(len(seeds), 32, len(x_BD), dtype=torch.bool)
        draw_masks(kept[None], seeds, i, round(config.expert.dropout * 256))
        half = (slice(0, len(t_a)), slice(len(t_a), None))
        for place, of_piece in enumerate(pieces):
            call = of_piece[i]
            own = loss[place : place + 1] if in_turn else loss
            assert len(call.heads) == len(own)
            learned = [p for p in (0, 1) if (own[:, p] > 0).any()]
            assert torch.equal(call.x_BD, torch.cat([x_BD[half[p]] for p in learned]))
            mine = slice(place % len(seeds), place % len(seeds) + 1) if in_turn else slice(None)
            assert call.kept_SHB is not None
            assert torch.equal(call.kept_SHB, torch.cat([kept[mine, :, half[p]] for p in learned], 2))
            assert len(call.terms) == len(learned)
            start = 0
            for p, term in zip(learned, call.terms, strict=True):
                assert torch.equal(term.target_B, targets[p])
                assert (term.rows.start, term.rows.stop) == (start, start + len(targets[p]))
                start = term.rows.stop
                assert term.outputs == (slice(0, 8), slice(8, 11))[p]
                assert term.scale_K is not None
                torch.testing.assert_close(term.scale_K * float(np.log((8, 3)[p])), own[:, p])


def test_standardisation(make_table: Make) -> None:
    """Compared with numpy on the training rows; constant features become 0."""
    table = make_table()
    table.x_TND[:, :, 3] = 7.0
    task: Task | None = transformation_task(table, 0)
    assert task is not None
    features = Features(table, standard_of(table, task, 0), CPU, torch.float32)
    t, n = task.rows(task.train_T, task.train_N)
    rows = table.x_TND[t, n].astype(np.float64)
    expected = (rows - rows.mean(0)) / np.where(np.arange(20) == 3, np.inf, rows.std(0))
    np.testing.assert_allclose(features(t, n).numpy(), expected, atol=1e-4)
