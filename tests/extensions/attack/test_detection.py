"""Detectors of attacks and their scores, compared with scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from substyle.engine.extensions.attack import detection as detection_module
from substyle.engine.extensions.attack.detection import FALSE_POSITIVES, detection, fit_all, fit_detector, mahalanobis
from substyle.errors import SubstyleError


@pytest.mark.parametrize("levels", [None, 4])
def test_auroc_and_tpr_are_those_of_scikit_learn(levels: int | None) -> None:
    rng = np.random.default_rng(0)
    original_N, attacked_N = rng.normal(size=90), rng.normal(1.0, 1.5, 90)
    if levels:  # ties
        original_N, attacked_N = np.round(original_N * levels) / levels, np.round(attacked_N * levels) / levels
    counted_N = rng.random(90) < 0.6
    found = detection(attacked_N, original_N, counted_N, np.arange(90), seed=0)
    assert found is not None
    truth = np.r_[np.ones(counted_N.sum()), np.zeros(90)]
    score = np.r_[attacked_N[counted_N], original_N]
    assert found["auroc"].value == pytest.approx(roc_auc_score(truth, score))
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    assert found["tpr"].value == pytest.approx(true[false <= FALSE_POSITIVES].max())
    low, high = found["auroc"].ci95 or [0, 0]
    assert low < found["auroc"].value < high
    assert detection(attacked_N, original_N, np.arange(90) < 4, np.arange(90), seed=0) is None


def test_scores_that_are_nan_are_refused() -> None:
    """They would rank below every photograph, as not attacked."""
    original_N, attacked_N, counted_N = np.zeros(9), np.ones(9), np.arange(9) > 0
    attacked_N[0] = np.nan  # does not count
    found = detection(attacked_N, original_N, counted_N, np.arange(9), seed=0)
    assert found is not None
    assert found["auroc"].value == 1.0
    attacked_N[7] = original_N[2] = np.nan
    with pytest.raises(SubstyleError, match="2 of 9 photographs are NaN: rows 2, 7"):
        detection(attacked_N, original_N, counted_N, np.arange(9), seed=0)


def test_the_detector_of_separable_pictures_is_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection_module, "CS", (1.0,))
    rng = np.random.default_rng(0)
    original_ND = rng.normal(size=(40, 300))
    attacked_ND = original_ND + 0.3 * rng.normal(size=300)
    found = fit_detector(original_ND, [attacked_ND], 0)
    x_RD = np.concatenate([original_ND, attacked_ND])
    scaled_RD = (x_RD - x_RD.mean(0)) / x_RD.std(0)
    exact = LogisticRegression(tol=1e-10, max_iter=100_000).fit(scaled_RD, np.arange(80) >= 40)
    assert found.converged
    np.testing.assert_allclose(found(x_RD), exact.decision_function(scaled_RD), atol=0.01)


def test_detectors_leave_out_radii_and_attacks() -> None:
    original_ND = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    moved = {"fgsm@1": original_ND + 1, "fgsm@8": original_ND + 2, "patch": original_ND + 3}
    found = fit_all(original_ND, moved, 0)
    assert set(found) == {"", "fgsm@1", "fgsm@8", "fgsm", "patch"}
    assert all(detector.converged for detector in found.values())
    np.testing.assert_allclose(found["fgsm"].weight_D, fit_detector(original_ND, [moved["patch"]], 0).weight_D)
    assert set(fit_all(original_ND, {"patch": original_ND + 1}, 0)) == {""}


def test_mahalanobis_is_the_smallest_distance_to_a_class() -> None:
    rng = np.random.default_rng(3)
    x_ND, label_N = rng.normal(size=(50, 4)), np.arange(50) % 2
    x_ND[label_N == 1] += 5
    score = mahalanobis(x_ND, label_N)
    centred = np.concatenate([x_ND[label_N == c] - x_ND[label_N == c].mean(0) for c in (0, 1)])
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    far = x_ND[:3] - x_ND[label_N == 0].mean(0), x_ND[:3] - x_ND[label_N == 1].mean(0)
    expected = np.minimum(*(np.einsum("nd,de,ne->n", d, np.linalg.inv(covariance), d) for d in far))
    np.testing.assert_allclose(score(x_ND[:3]), expected)
