"""Linear probes: grid, selection, resamples and row weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.engine.probes.conftest import Make, Quick, features_of

from substyle.engine.probes import linear
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.linear import Linear, fit_linear, resampled_images, variant_weights
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.tasks import kind_task, transformation_task
from substyle.engine.probes.trainer import Validation
from substyle.engine.probes.training_rows import TrainingRows
from substyle.kernels.probe_heads import Heads

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def picked(make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Linear]:
    """(Cs, judged: C -> accuracy and loss) -> selected probe, with fake fits and validation."""
    features, task = features_of(table := make_table(), transformation_task(table, 0))
    rows = int(task.distinct_TN[np.ix_(task.train_T, task.train_N)].sum())

    def pick(Cs: tuple[float, ...], judged: Callable[[float], tuple[float, float]]) -> Linear:
        def fit(rows_: object, strength_K: np.ndarray, tolerance: float | np.ndarray, **_: object) -> Fit:
            C_K = torch.tensor(1.0 / (np.asarray(strength_K) * rows))
            heads = Heads(C_K[:, None, None].expand(-1, 8, 20).clone(), torch.zeros(len(C_K), 8))
            return Fit(heads, np.zeros(len(C_K)), np.ones(len(C_K), np.int64), np.full(len(C_K), tolerance))

        def judge(_: Validation, heads: Heads) -> tuple[np.ndarray, np.ndarray]:
            accuracy, loss = judged(float(f"{float(heads.w1[0, 0, 0]):.4g}"))
            return np.array([accuracy]), np.array([loss])

        monkeypatch.setattr(linear.solver, "fit", fit)
        monkeypatch.setattr(Validation, "judge", judge)
        monkeypatch.setattr(linear, "compare", lambda *_: (0.0, True))
        return fit_linear(features, task, quick(Cs=Cs))

    return pick


@pytest.mark.parametrize("best", [1e-5, 1e-2, 1e3])
def test_the_grid_grows_until_the_best_lies_inside(picked: Callable[..., Linear], best: float) -> None:
    """The grid is extended tenfold at the end with the best C, by one value beyond the best."""
    found = picked((1e-2, 1e-1), lambda C: (1.0 - abs(np.log10(C / best)) / 20, 1.0))
    assert np.isclose(found.C, best)
    low, high = min(best / 10, 1e-2), max(best * 10, 1e-1)
    np.testing.assert_allclose(found.tried, 10.0 ** np.arange(round(np.log10(low)), round(np.log10(high)) + 1))
    assert found.describe()["edge"] is False


def test_it_is_scikit_learn_s_at_the_same_penalty(make_table: Make, quick: Quick) -> None:
    """Heads on all photographs and on resamples, compared by probabilities."""
    features, task = features_of(table := make_table(style=1.0), transformation_task(table, 0))
    times_SN = resampled_images(task, np.arange(len(table.keys)), 2, 0)
    found = fit_linear(features, task, quick(tolerance=1e-5), times_SN)
    assert found.resampled is not None
    t_R, n_R = task.rows(task.train_T, task.train_N)
    x_RD = features(t_R, n_R).double().numpy()
    for heads, k, times_N in ((found.heads, 0, None), (found.resampled.heads, 0, times_SN[0]),
                              (found.resampled.heads, 1, times_SN[1])):  # fmt: skip
        weight_R = np.ones(len(t_R)) if times_N is None else times_N[n_R]
        C = found.C * len(t_R) / weight_R.sum()
        reference = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(x_RD, t_R, weight_R)
        logits = x_RD @ heads.w1[k].double().numpy().T + heads.b1[k].double().numpy()
        ours = torch.from_numpy(logits).softmax(1).numpy()
        np.testing.assert_allclose(ours, reference.predict_proba(x_RD), atol=2e-3)


def test_a_fit_that_runs_out_of_passes_says_so(make_table: Make, quick: Quick) -> None:
    features, task = features_of(table := make_table(style=0.5), transformation_task(table, 0))
    found = fit_linear(features, task, quick(passes=3, Cs=(1e-2, 1e-1, 1.0)))
    said = found.describe()
    assert said["converged"] is False
    assert said["certificate"]["gradient"] > said["certificate"]["tolerance"]
    assert said["certificate"]["iterations"] <= 3


def test_kind_classes_weigh_the_same(make_table: Make) -> None:
    """Sums with missing rows: equal weight per class, and per transformation within a class."""
    distinct = np.random.default_rng(3).random((8, 120)) < np.linspace(1.0, 0.3, 8)[:, None]
    table = make_table(distinct_TN=distinct)
    task = kind_task(table, 0)
    assert task is not None
    for seen in (task.train_T, np.setdiff1d(task.train_T, [2])):
        weight_T = variant_weights(task, seen)
        of_class, of_variant = dict.fromkeys(task.labels, 0.0), dict.fromkeys(range(8), 0.0)
        for t in range(8):
            for n in task.train_N:
                if distinct[t, n]:
                    of_variant[t] += weight_T[t]
                    if weight_T[t]:
                        of_class[table.kind[t]] += weight_T[t]
        assert list(of_class.values()) == pytest.approx([1.0] * 4)
        for t in range(8):
            members = [u for u in seen if table.kind[u] == table.kind[t]]
            assert of_variant[t] == pytest.approx(1 / len(members) if t in seen else 0.0)
    transformation = transformation_task(table, 0)
    assert transformation is not None
    assert variant_weights(transformation, np.array([0, 3])).tolist() == [1, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("accuracies", "stalled", "of_resamples"),
    [
        ((500, 501), False, 0),
        ((500, 510, 511), False, 1),
        ((500, 503, 502), False, 0),  # the first agrees with the last, though not with the second
        ((500, 510, 501, 502), False, 2),  # it does so by chance: a tighter one does not
        ((500, 520, 510, 519), False, 3),  # never, within three reductions
        ((500, 510, 501), True, 1),  # the last does not reach its tolerance
        ((500, 501), True, 0),
    ],
)
def test_resamples_have_the_loosest_tolerance_that_agrees(
    accuracies: tuple[float, ...],
    stalled: bool,
    of_resamples: int,
    make_table: Make,
    quick: Quick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fit starts at the last one and leaves it: a third of the gradient that it has reached is the next goal."""
    features, task = features_of(table := make_table(), transformation_task(table, 0))
    seen: list[Heads] = []
    fits: list[Fit] = []
    fit_heads = linear.fit_heads

    def fitted(rows: TrainingRows, config: ProbeConfig, Cs: Sequence[float], *given: Any, **more: Any) -> Fit:  # noqa: ANN401
        made = fit_heads(rows, config, Cs, *given, **more)
        if given and given[0] is not None:
            fits.append(made)
        return made

    def compared(_: object, a: Heads, b: Heads, within: float) -> tuple[float, bool]:
        seen.extend(heads for heads in (b, a) if heads not in seen)
        difference = (accuracies[seen.index(a)] - accuracies[seen.index(b)]) / 1000
        return difference, abs(difference) <= within + 1e-9

    monkeypatch.setattr(linear, "compare", compared)
    monkeypatch.setattr(linear, "fit_heads", fitted)
    config = quick(doublings=3)
    if stalled:
        last = len(accuracies) - 1
        monkeypatch.setattr(Fit, "converged_K", property(lambda own: np.array([len(fits) < last])))
    found = fit_linear(features, task, config, resampled_images(task, np.arange(len(table.keys)), 1, 0))
    assert len(seen) == len(accuracies)
    assert found.agreed == found.describe()["converged"] == (of_resamples < 3 and not stalled)
    assert found.difference == pytest.approx((accuracies[-1] - accuracies[-2]) / 1000)
    assert found.fit is fits[-1]
    assert all(not torch.equal(a.w1, b.w1) for a, b in pairwise(seen))
    for before, after in pairwise(fits):
        assert after.tolerance_K[0] == before.gradient_K[0] / 3
    assert found.resampled is not None
    assert (
        found.resampled.tolerance_K[0] == [config.expert.tolerance, *(fit.tolerance_K[0] for fit in fits)][of_resamples]
    )
