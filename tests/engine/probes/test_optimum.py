"""Every linear probe is scikit-learn's where few rows of many features are separable, and gradients small far from the
optimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.engine.probes.conftest import Make, Quick, features_of

from substyle.engine.extensions.extractability.control_tasks import control, shuffled
from substyle.engine.extensions.generators import stage as generators
from substyle.engine.extensions.generators.stage import GeneratorsConfig, unseen_styles
from substyle.engine.probes import linear, solver
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.leave_one_out import rotate, whole_task
from substyle.engine.probes.linear import fit_linear, resampled_images, training_rows_of
from substyle.engine.probes.preconditioner import CovarianceBasis
from substyle.engine.probes.solver import Fit
from substyle.engine.probes.training_rows import TrainingRows
from substyle.engine.store.table import EmbeddingTable
from substyle.kernels.probe_heads import Heads

pytestmark = pytest.mark.usefixtures("one_thread")

C = 100.0
STYLES = {"net": [1, 2], "ink": [3, 4], "oil": [5, 6]}


@dataclass
class Fitted:
    """A fit, and what it was fitted to."""

    rows: TrainingRows
    strength_K: np.ndarray
    start: Heads | None
    fit: Fit


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Fitted]:
    """All fits of the solver."""
    made: list[Fitted] = []
    own = solver.fit

    def watched(rows: TrainingRows, strength_K: np.ndarray, *, start: Heads | None = None, **given: Any) -> Fit:  # noqa: ANN401
        made.append(Fitted(rows, np.asarray(strength_K), start, own(rows, strength_K, start=start, **given)))
        return made[-1].fit

    monkeypatch.setattr(solver, "fit", watched)
    monkeypatch.setattr(linear, "C_RANGE", (C, C))
    monkeypatch.setattr(GeneratorsConfig, "C", C)
    return made


def of_task(table: EmbeddingTable, config: ProbeConfig, name: str) -> None:
    features, task = features_of(table, name)
    fit_linear(features, task, config, resampled_images(task, np.arange(len(table.keys)), 1, 0))


def of_rotation(table: EmbeddingTable, config: ProbeConfig, _: str) -> None:
    features, task = features_of(table, whole_task(table, 0))
    rotate(features, task, C, config, table.rows(2), redraws=1)


def of_generators(table: EmbeddingTable, config: ProbeConfig, _: str) -> None:
    style = tuple("style" if any(t in own for own in STYLES.values()) else name for t, name in enumerate(table.kind))
    unseen_styles(replace(table, kind=style), GeneratorsConfig(styles=2, draws=2), config)


def of_labels(table: EmbeddingTable, config: ProbeConfig, which: str) -> None:
    """Control tasks and shuffled labels."""
    features, task = features_of(table, "class")
    made = fit_linear(features, task, config)
    basis = CovarianceBasis.of(training_rows_of(features, task))
    if which == "control":
        control(features, task, made, config, None, basis)
    else:
        shuffled(features, task, made, config, basis)


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (of_task, "class"),
        (of_task, "kind"),
        (of_task, "transformation"),
        (of_rotation, ""),
        (of_generators, ""),
        (of_labels, "control"),
        (of_labels, "shuffled"),
    ],
)
def test_it_is_scikit_learn_s_optimum(
    run: Callable[[EmbeddingTable, ProbeConfig, str], None],
    name: str,
    fitted: list[Fitted],
    make_table: Make,
    quick: Quick,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generators, "by_generator", lambda *_: STYLES)
    table = make_table(images=40, width=256, style=0.5, classes=5)
    run(table, quick(Cs=(C,), doublings=5, device="cpu"), name)
    continued = [each for each in fitted if each.start is not None]
    assert continued or run is of_labels
    for each in (fitted[0], fitted[-1]):
        compared(each, k=len(each.strength_K) - 1)
    for each in continued:
        assert each.start is not None
        assert not torch.equal(each.start.w1, each.fit.heads.w1)


def compared(found: Fitted, k: int) -> None:
    """Compare the objective of a head, and its accuracy on shifted test rows, with those of the optimum."""
    rows, strength = found.rows, float(found.strength_K[k])
    x_RD = rows.features.full(torch.float64)(rows.t_R, rows.n_R)
    target_R = rows.task.answers(rows.t_R, rows.n_R)
    variant_KT, image_KN = rows.shares()
    share_R = variant_KT[k, rows.t_R] * (1.0 if image_KN is None else image_KN[k, rows.n_R])
    used = share_R > 0
    model = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=100_000)
    model.fit(x_RD[used].numpy(), target_R[used], share_R[used])
    best = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    ours = found.fit.heads.w1[k].double()[model.classes_], found.fit.heads.b1[k].double()[model.classes_]
    place_R = torch.from_numpy(np.searchsorted(model.classes_, target_R[used]))

    def objective(weight_CD: torch.Tensor, bias_C: torch.Tensor) -> float:
        loss_R = torch.nn.functional.cross_entropy(x_RD[used] @ weight_CD.T + bias_C, place_R, reduction="none")
        return float(loss_R @ torch.from_numpy(share_R[used]) + strength / 2 * weight_CD.square().sum())

    assert objective(*ours) == pytest.approx(objective(*best), rel=0.01)
    rng = np.random.default_rng(0)
    pick_R = rng.integers(len(target_R), size=2000)
    noise = 1.5 * rng.normal(size=(2000, x_RD.shape[1]))
    x_BD = x_RD[pick_R] + torch.from_numpy(noise)
    right = [
        (model.classes_[(x_BD @ weight_CD.T + bias_C).argmax(1)] == target_R[pick_R]).mean()
        for weight_CD, bias_C in (ours, best)
    ]
    assert abs(right[0] - right[1]) <= 0.002, right
