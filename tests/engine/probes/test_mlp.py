"""Convergence of MLPs, and the multi-task MLP and its twins."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from tests.engine.probes.conftest import CPU, Make, Quick, features_of

from substyle.engine.probes import mlp as module
from substyle.engine.probes import mlp as multitask
from substyle.engine.probes.batches import BatchPart, Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.heads import Setting, grid, initial
from substyle.engine.probes.linear import resampled_images
from substyle.engine.probes.mlp import (
    JOINT,
    TWIN_CLASS,
    TWIN_TRANSFORMATION,
    Mlp,
    by_accuracy,
    by_loss,
    part_of,
    settings_of,
    train_mlp,
    train_multitask,
    until_settled,
)
from substyle.engine.probes.tasks import Task, class_task, kind_task, transformation_task
from substyle.engine.probes.trainer import Trained, Validation, train
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_heads import Heads

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Trainings:
    """A fake `train`: heads encode their setting and number of steps.

    Attributes:
        accuracy, loss: of a setting after some steps.
        made: settings and steps of each training.
    """

    accuracy: Callable[[Setting, int], float]
    loss: Callable[[Setting, int], float]
    made: list[tuple[list[Setting], int]] = field(default_factory=list)

    def __call__(
        self, features: object, parts: object, settings: Sequence[Setting], config: object, steps: int, **_: object
    ) -> dict[Setting, Trained]:
        self.made.append((list(settings), steps))
        return {
            s: Trained(s, Heads(torch.tensor([[[s.lr, steps]]]), torch.zeros(1, 1)), self.accuracy(s, steps),
                       self.loss(s, steps), steps, 9.0)
            for s in settings
        }  # fmt: skip


class Asked:
    """Rows on which more than enough steps gain nothing.

    Args:
        enough: steps from which twice as many give the same.
    """

    def __init__(self, enough: int) -> None:
        self.enough = enough

    def difference(self, now: Heads, before: Heads) -> tuple[float, bool]:
        (lr, after), (other, steps) = now.w1[0, 0].tolist(), before.w1[0, 0].tolist()
        assert lr == other
        assert after == 2 * steps
        return 1 / steps, steps >= self.enough


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch, quick: Quick) -> Callable[..., tuple[dict[str, Mlp], Trainings]]:
    """(settings, asked, rank, accuracy, loss, doublings) -> what is found, and what was trained for it."""

    def run(
        settings: list[Setting],
        asked: list[Asked],
        rank: module.Rank = by_accuracy,
        accuracy: Callable[[Setting, int], float] = lambda s, steps: s.lr,
        loss: Callable[[Setting, int], float] = lambda s, steps: 1.0,
        doublings: int = 3,
    ) -> tuple[dict[str, Mlp], Trainings]:
        trainings = Trainings(accuracy, loss)
        monkeypatch.setattr(module, "train", trainings)
        config = quick(doublings=doublings)
        found = until_settled(None, [], settings, config, 10, rank, asked, lambda _: None)  # type: ignore[arg-type]
        return found, trainings

    return run


Settled = Callable[..., tuple[dict[str, Mlp], Trainings]]
SETTINGS = [Setting(lr, 0.1, 4) for lr in (0.25, 0.75, 0.5)]


@pytest.mark.parametrize(("enough", "steps"), [(10, 20), (20, 40), (40, 80)])
def test_the_best_is_trained_again_until_that_gains_nothing(settled: Settled, enough: int, steps: int) -> None:
    found, trainings = settled(SETTINGS, [Asked(enough)])
    best = SETTINGS[1]
    doubled = [10 * 2**i for i in range(1, round(math.log2(steps / 10)) + 1)]
    assert trainings.made == [(SETTINGS, 10), *(([best], s) for s in doubled)]
    mlp = found[""]
    assert (mlp.trained.setting, mlp.trained.steps, mlp.converged) == (best, steps, True)
    assert mlp.gain == 2 / steps
    assert mlp.describe() == {
        "setting": best.describe(), "validation": 0.75, "steps": steps, "converged": True,
        "certificate": {"steps": steps, "gain": 2 / steps},
    }  # fmt: skip


@pytest.mark.parametrize("doublings", [1, 2])
def test_while_trainings_gain_doublings_run_out(settled: Settled, doublings: int) -> None:
    found, trainings = settled(SETTINGS, [Asked(10**6)], doublings=doublings)
    assert [steps for _, steps in trainings.made] == [10 * 2**i for i in range(doublings + 1)]
    assert found[""].converged is False
    assert found[""].describe()["converged"] is False
    assert found[""].trained.steps == 10 * 2**doublings


class Gains(Asked):
    """Gains of a longer training, by the steps of the shorter one; those above 0.01 are clear."""

    def __init__(self, gains: dict[int, float]) -> None:
        self.gains = gains

    def difference(self, now: Heads, before: Heads) -> tuple[float, bool]:
        gain = self.gains[int(before.w1[0, 0, 1])]
        return gain, abs(gain) <= 0.01


def test_gains_that_do_not_shrink_end_the_doubling(settled: Settled) -> None:
    found, trainings = settled(SETTINGS, [Gains({10: 0.04, 20: 0.03, 40: 0.03})], doublings=9)
    assert [steps for _, steps in trainings.made] == [10, 20, 40, 80]
    assert (found[""].gain, found[""].converged, found[""].trained.steps) == (0.03, False, 80)


@pytest.mark.parametrize(
    ("accuracy", "kept"),
    [(0.8, 20), (0.7, 40)],  # of 20 steps; it is 0.7 of the others
)
def test_a_longer_training_that_overfits_is_not_used(settled: Settled, accuracy: float, kept: int) -> None:
    """It settles the matter; of equal accuracies, the lower loss decides."""
    found, trainings = settled(
        SETTINGS, [Gains({10: 0.04, 20: -0.04})], by_accuracy, lambda s, steps: accuracy if steps == 20 else 0.7,
        lambda s, steps: 1 / steps,
    )  # fmt: skip
    assert [steps for _, steps in trainings.made] == [10, 20, 40]
    mlp = found[""]
    assert (mlp.gain, mlp.converged, mlp.steps, mlp.trained.steps) == (-0.04, True, 40, kept)


@pytest.mark.parametrize(("first", "doublings", "steps", "converged"), [(0.04, 9, 40, True), (0.04, 1, 20, False)])
def test_a_gain_on_one_part_goes_on_whatever_another_loses(
    settled: Settled, first: float, doublings: int, steps: int, converged: bool
) -> None:
    """The best training is used, whether it is one of the last two or not, and whether they are settled or not."""
    both = [Setting(0.5, 0.1, 4, loss=(0.5, 0.5))]
    parts = [Gains({10: first, 20: 0.0}), Gains({10: -0.05, 20: -0.05})]
    found, trainings = settled(both, parts, by_loss, lambda s, steps: -steps, doublings=doublings)
    assert [made for _, made in trainings.made] == [10, 20, 40][: 2 + (doublings > 1)]
    mlp = found[""]
    assert (mlp.converged, mlp.steps, mlp.trained.steps) == (converged, steps, 10)
    assert mlp.gain == (0.0 if converged else first)


def test_the_rank_picks(settled: Settled) -> None:
    """Accuracy with ties by lower loss; or the loss only."""

    def picked(rank: module.Rank, accuracy: dict[float, float], loss: dict[float, float]) -> float:
        found, _ = settled(SETTINGS, [Asked(10)], rank, lambda s, _: accuracy[s.lr], lambda s, _: loss[s.lr])
        return found[""].trained.setting.lr

    accuracy, loss = {0.25: 0.9, 0.75: 0.9, 0.5: 0.8}, {0.25: 2.0, 0.75: 1.5, 0.5: 1.0}
    assert picked(by_accuracy, accuracy, loss) == 0.75
    assert picked(by_loss, accuracy, loss) == 0.5
    assert picked(by_accuracy, accuracy | {0.5: 0.95}, loss) == 0.5


def test_each_group_is_trained_on_until_it_gains_nothing(settled: Settled) -> None:
    """One setting per group, compared on each part that it learns; the largest gain is kept."""
    settings = [
        Setting(lr, 0.1, 4, group=group, loss=loss)
        for lr in (0.25, 0.75)
        for group, loss in (("both", (0.5, 0.5)), ("first", (1.0, 0.0)))
    ]
    found, trainings = settled(settings, [Asked(10), Asked(40)])
    assert [steps for _, steps in trainings.made] == [10, 20, 40, 80]
    assert [own for own, _ in trainings.made[1:]] == [[settings[2], settings[3]], [settings[2]], [settings[2]]]
    assert {group: (mlp.converged, mlp.steps) for group, mlp in found.items()} == {
        "both": (True, 80),
        "first": (True, 20),
    }
    found, trainings = settled(settings, [Asked(10), Asked(40)], doublings=2)
    assert {group: mlp.converged for group, mlp in found.items()} == {"both": False, "first": True}


def test_a_training_of_twice_the_steps_begins_anew(make_table: Make, quick: Quick) -> None:
    """The result equals training this setting alone for as many steps."""
    features, task = features_of(make_table(), transformation_task(make_table(), 0))
    config = quick(mlp_steps=10)
    steps: list[int] = []
    found = train_mlp(features, task, config, advance=steps.append)
    own = found.trained
    assert own.setting in grid(config)
    assert found.steps == 20
    assert sum(steps) == 10 + 20
    alone = train(features, [part_of(features, task, config)], [own.setting], config, own.steps)[own.setting]
    for ours, theirs in zip(own.heads.parameters, alone.heads.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    first = train(features, [part_of(features, task, config)], grid(config), config, 10)
    assert own.setting == max(first.values(), key=by_accuracy).setting
    rows = Validation(features, task, config)
    longer = train(features, [part_of(features, task, config)], [own.setting], config, 20)[own.setting]
    gain, agree = rows.difference(longer.heads, first[own.setting].heads)
    assert (found.gain, found.converged) == (gain, agree or gain < 0)


def test_mlps_of_resampled_photographs(make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    """The selected setting and steps, individual seeds, and only drawn photographs."""
    features, task = features_of(table := make_table(), transformation_task(make_table(), 0))
    times_SN = resampled_images(task, np.arange(len(table.keys)), 2, 0)
    calls: list[tuple[Sequence[BatchPart], list[Setting], int, object]] = []

    def spy(
        features: Features, parts: Sequence[BatchPart], settings: list[Setting], config: ProbeConfig, steps: int,
        *, seeds: Sequence[int] | None = None, advance: Callable[[int], None],
    ) -> dict[Setting, Trained]:  # fmt: skip
        calls.append((parts, settings, steps, seeds))
        return train(features, parts, settings, config, steps, seeds=seeds, advance=advance)

    monkeypatch.setattr(module, "train", spy)
    found = train_mlp(features, task, quick(mlp_steps=10), times_SN)
    assert found.resampled is not None
    assert len(found.resampled) == 2
    assert len(found.resampled.layers) == 2
    assert not torch.equal(found.resampled.w1[0], found.resampled.w1[1])
    for s, (parts, settings, steps, seeds) in enumerate(calls[2:]):
        assert (settings, steps, seeds) == ([found.trained.setting], found.trained.steps, [s + 1])
        (part,) = parts
        assert part.count == calls[0][0][0].count
        drawn = part.stream.rows(0, 4000)[1].numpy()
        assert set(drawn) == set(np.flatnonzero(times_SN[s]))
        share = np.bincount(drawn, minlength=len(table.keys)) / len(drawn)
        np.testing.assert_allclose(share, times_SN[s] / times_SN[s].sum(), atol=0.004)
    assert train_mlp(features, task, quick(mlp_steps=10), times_SN[:0]).resampled is None


@pytest.mark.parametrize(
    ("rows", "most", "size"), [(10, 1024, 10), (100, 1024, 32), (1600, 1024, 100), (10**6, 1024, 1024), (100, 20, 20)]
)
def test_batches_of_small_tables_are_smaller(rows: int, most: int, size: int) -> None:
    assert module.batch_size(rows, most) == size


# --- the multi-task probe ---------------------------------------------------------------------------------------------


def both(table: EmbeddingTable) -> tuple[Task, Task]:
    transformation, class_ = transformation_task(table, 0), class_task(table, 0)
    assert transformation is not None
    assert class_ is not None
    return transformation, class_


def test_the_grid_of_the_joint_probe_is_that_of_its_twins(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformation, class_ = both(make_table())
    monkeypatch.setattr(ProbeConfig, "task_weight", 0.25)
    settings = settings_of(transformation, class_, quick(widths=(8, 16)))
    assert len(settings) == 3 * 4
    log_8, log_3 = math.log(8), math.log(3)
    losses = {JOINT: (0.25 / log_8, 0.75 / log_3), TWIN_TRANSFORMATION: (1 / log_8, 0.0), TWIN_CLASS: (0.0, 1 / log_3)}
    grids = []
    for group, loss in losses.items():
        own = [s for s in settings if s.group == group]
        grids.append([(s.lr, s.weight_decay, s.width) for s in own])
        assert all(s.loss == pytest.approx(loss) for s in own)
        assert all(s.score == pytest.approx(np.array(loss) * (log_8, log_3)) for s in own)
    assert grids[0] == grids[1] == grids[2]
    assert len(set(grids[0])) == 4


def test_the_joint_probe_is_picked_by_its_summed_validation_loss(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first grid each group is ranked by its parts, weighted as in training."""
    ranks: list[object] = []

    def spy(*arguments: object) -> dict[str, Mlp]:
        ranks.append(arguments[5])
        return until_settled(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(multitask, "until_settled", spy)
    table = make_table(style=1.0)
    transformation, class_ = both(table)
    features, _ = features_of(table, transformation)
    config = quick(multitask_learning_rates=(1e-1, 1e-2, 1e-4), multitask_steps=10)
    found = train_multitask(features, transformation, class_, config, table.rows(2))
    assert ranks == [by_loss]
    half = part_of(features, transformation, config, share=2)
    parts = [half, replace(part_of(features, replace(class_, first=8), config), count=half.count)]
    first = train(features, parts, settings_of(transformation, class_, config), config, 10)
    rows = [Validation(features, transformation, config), Validation(features, replace(class_, first=8), config)]
    for group, mlp in found.made.items():
        loss = {
            s: sum(w * float(v.judge(t.heads)[1][0]) for w, v in zip(s.loss, rows, strict=True))
            for s, t in first.items() if s.group == group
        }  # fmt: skip
        assert mlp.trained.setting == min(loss, key=loss.__getitem__)
        assert len(loss) == 3
    assert found.scores_TN.keys() == {"transformation", "class", TWIN_TRANSFORMATION, TWIN_CLASS}
    assert all(score.shape == (8, len(table.rows(2))) for score in found.scores_TN.values())
    json.dumps({group: mlp.describe() for group, mlp in found.made.items()}, allow_nan=False)


def test_a_twin_is_a_single_task_training(make_table: Make, quick: Quick) -> None:
    """The twin's class outputs are not trained, so its hidden layer depends only on transformations."""
    table = make_table()
    transformation, class_ = both(table)
    features, _ = features_of(table, transformation)
    config = quick(mlp_weight_decays=(0.0,), multitask_steps=8)
    made = train_multitask(features, transformation, class_, config, table.rows(2)).made
    start = initial(32, 20, 11, 1, [0], CPU)
    for group, still, moved in (
        (TWIN_TRANSFORMATION, slice(8, 11), slice(0, 8)), (TWIN_CLASS, slice(0, 8), slice(8, 11)),
    ):  # fmt: skip
        w2 = made[group].trained.heads.parameters[2]
        torch.testing.assert_close(w2[:, still], start.parameters[2][:, still])
        assert not torch.equal(w2[:, moved], start.parameters[2][:, moved])


def test_a_longer_training_of_a_class_probe_must_not_gain_on_transformed_photographs(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class probes are trained on identity and scored on all; kind probes are scored on training transformations."""
    table, asked = make_table(), list[int]()
    real = module.until_settled

    def spy(*arguments: object) -> dict[str, Mlp]:
        asked.extend(len(v.answers) for v in arguments[6])  # type: ignore[attr-defined]
        assert arguments[5] is by_accuracy
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "until_settled", spy)
    for kind in (class_task, kind_task):
        features, task = features_of(table, kind(table, 0))
        train_mlp(features, task, quick(mlp_steps=2))
    val = len(table.rows(1))
    assert asked == [8 * val, 6 * val]


@pytest.mark.parametrize(("rate", "converged"), [(1e-9, False), (1e-7, False), (1e-2, True)])
def test_a_training_that_has_not_moved_has_not_converged(
    make_table: Make, quick: Quick, rate: float, converged: bool
) -> None:
    """With a learning rate that is too small, no number of steps gains anything."""
    features, task = features_of(make_table(), "class")
    found = train_mlp(features, task, quick(mlp_learning_rates=(rate,), doublings=2))
    assert abs(found.gain) <= 0.01
    assert found.converged is converged


def test_a_training_that_has_diverged_has_not_converged(make_table: Make, quick: Quick) -> None:
    features, task = features_of(make_table(), "class")
    found = train_mlp(features, task, quick(mlp_learning_rates=(10.0,), mlp_weight_decays=(100.0,), doublings=2))
    assert (found.trained.loss, found.converged) == (math.inf, False)
