"""Few-shot class accuracy: logistic regression on a few photographs of each class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt
from scipy.special import stdtrit

from substyle.engine.base_config import BootstrapConfig
from substyle.engine.probes.resampling import resample
from substyle.engine.probes.tasks import identity
from substyle.engine.results.model import entry_of
from substyle.engine.stages.few_shot import section
from substyle.engine.stages.few_shot.section import FewShot
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.store.layout import TEST, TRAIN
from substyle.engine.store.table import EmbeddingTable
from substyle.pipelines.validation import validated

ITERATIONS = 100
# By strong convexity the loss is within rows * |gradient|² / 2 of its minimum: 1e-5 nats for 1,000 rows of 10 classes
# and 2,000 numbers. At scikit-learn's 1e-4 this would be 0.1 nats.
TOLERANCE = 1e-6


@validated("few_shot")
class FewShotConfig(BootstrapConfig):
    """Few-shot class accuracy: logistic regression on a few photographs of each class, over several draws."""

    shots: Annotated[StrictInt, Field(ge=0, le=10**6)] = 16
    """Training photographs of each class, or all of a class that has fewer; 0 turns the stage off."""
    draws: Annotated[StrictInt, Field(ge=2, le=1000)] = 5
    """Number of draws of training photographs, the same for all backbones."""


class FewShotStage(JsonStage[FewShotConfig]):
    """Score logistic regression that is trained on few original photographs of each class.

    As image classification in MIEB (Xiao et al., "MIEB: Massive Image Embedding Benchmark", 2025): scikit-learn with
    its default penalty on embeddings as they are stored, 16 photographs of each class, the mean over 5 draws. Here the
    optimiser runs until it converges, by Newton-CG: where features differ in scale, L-BFGS takes over 1,000 iterations.
    """

    name = "few_shot"
    version = 2
    config = FewShotConfig
    switch = "shots"
    alike = True
    in_reports = True
    backbone_results = FewShot
    report = section

    def units(self, run: Run, config: FewShotConfig) -> Iterable[Unit]:
        """Backbones whose photographs have classes."""
        return [unit for unit in super().units(run, config) if _classes(run.tables[unit.name]) is not None]

    def compute(self, run: Run, config: FewShotConfig, unit: Unit, folder: Path) -> None:
        """Write the scores."""
        self.write(folder, few_shot(run.tables[unit.name], config))


STAGE = FewShotStage()


def _classes(table: EmbeddingTable) -> NDArray[np.int64] | None:
    """Classes of the training photographs; None for fewer than two, or without test photographs of them."""
    labels = table.label_N[table.rows(TRAIN)]
    classes = np.unique(labels[labels >= 0])
    return classes if len(classes) > 1 and np.isin(table.label_N[table.rows(TEST)], classes).any() else None


def few_shot(table: EmbeddingTable, config: FewShotConfig) -> JSON:
    """Mean accuracy over draws on the original test photographs of the classes of the training photographs.

    The 95 % interval is over test photographs, and over draws (Student's t), added in quadrature: each part holds the
    other's sample fixed.

    Returns:
        results of `FewShot`.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    classes, t = _classes(table), identity(table)
    assert classes is not None
    train_N, test_N = (_of_classes(table, split, classes) for split in (TRAIN, TEST))
    test_ND = table.take_finite(t, test_N).astype(np.float64)
    train_label_N, test_label_N = table.label_N[train_N], table.label_N[test_N]

    def one(draw: int) -> tuple[NDArray[np.bool_], bool]:
        chosen = _drawn(train_label_N, config.shots, np.random.default_rng([config.seed, draw]))
        x_BD = table.take_finite(t, train_N[chosen]).astype(np.float64)  # in float32 line searches fail
        predicted_N, converged = _fitted(x_BD, train_label_N[chosen], test_ND)
        return predicted_N == test_label_N, converged

    # a draw on one thread gives the same numbers on any number of cores
    with ThreadPoolExecutor(torch.get_num_threads()) as pool, threadpool_limits(1):
        made = list(pool.map(one, range(config.draws)))
    right_SN, converged = np.array([right_N for right_N, _ in made], np.float64), all(done for _, done in made)
    group_N = table.groups_of(test_N, config.resample_by)
    mean = resample(right_SN, config.bootstrap, config.seed, group_N).mean(np.ones(config.draws))
    interval = widened(mean.value, mean.ci95, right_SN.mean(axis=1))
    return {
        "accuracy": entry_of(mean.value, interval, mean.units, table.unit_of(config.resample_by)),
        "accuracies": right_SN.mean(axis=1).tolist(),
        **asdict(config),
        "fewest": int(min(config.shots, np.unique(train_label_N, return_counts=True)[1].min())),
        "images": len(test_N),
        "classes": len(classes),
        "converged": converged,
    }


def _fitted(
    x_BD: NDArray[np.float64], label_B: NDArray[np.int64], test_ND: NDArray[np.float64]
) -> tuple[NDArray[np.int64], bool]:
    """Classes that logistic regression predicts, and whether its gradient is within `TOLERANCE`.

    Shape: (B, D), (B,), (N, D) to (N,).
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    model = LogisticRegression(solver="newton-cg", tol=TOLERANCE, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is measured
        model.fit(x_BD, label_B)
    error_BC = model.predict_proba(x_BD) - (label_B[:, None] == model.classes_)
    error_BC = error_BC[:, -len(model.coef_) :]  # two classes have one row of coefficients
    slope_CD = (error_BC.T @ x_BD + model.coef_) / len(x_BD)  # of the mean loss, whose penalty is |w|² / 2
    return model.predict(test_ND), bool(max(np.abs(slope_CD).max(), np.abs(error_BC.mean(axis=0)).max()) <= TOLERANCE)


def _of_classes(table: EmbeddingTable, split: int, classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Photographs of a split and of some classes in the order of their keys."""
    rows = table.rows(split)
    return table.by_key(rows[np.isin(table.label_N[rows], classes)])


def _drawn(label_N: NDArray[np.int64], shots: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Up to ``shots`` random photographs of each class."""
    each = [rng.permutation(np.flatnonzero(label_N == label))[:shots] for label in np.unique(label_N)]
    return np.concatenate(each)


def widened(value: float, low_high: list[float] | None, accuracy_S: NDArray[Any]) -> list[float] | None:
    """An interval over photographs, widened by that over draws."""
    if low_high is None:
        return None
    draws = len(accuracy_S)
    half = float(stdtrit(draws - 1, 0.975) * accuracy_S.std(ddof=1) / math.sqrt(draws))
    below, above = (math.hypot(end, half) for end in (value - low_high[0], low_high[1] - value))
    return [max(value - below, 0.0), min(value + above, 1.0)]
