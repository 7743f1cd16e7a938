import numpy as np
import pytest
from sklearn.metrics.pairwise import paired_cosine_distances

from substyle.engine.analysis import geometry


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, strength: float) -> np.ndarray:
    """Ridge regression with an intercept from the normal equations in float64."""
    x, y, new = (a.astype(np.float64) for a in (x, y, new))
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    a = (x - mean_x).T @ (x - mean_x) + strength * np.eye(x.shape[1])
    return (new - mean_x) @ np.linalg.solve(a, (x - mean_x).T @ (y - mean_y)) + mean_y


def test_sensitivity_equals_scikit_learn_and_does_not_see_a_cone() -> None:
    identity = normal(0, 40, 9)
    variant = identity + 0.5 * normal(1, 40, 9)
    mean = identity.mean(axis=0)
    found = geometry.sensitivity(identity, variant, mean)
    assert found == pytest.approx(paired_cosine_distances(identity - mean, variant - mean), abs=1e-5)
    cone = 30 * np.abs(normal(2, 1, 9))
    moved = geometry.sensitivity(2 * identity + cone, 2 * variant + cone, 2 * mean + cone[0])
    assert moved == pytest.approx(found, abs=1e-3)
    assert paired_cosine_distances(identity + cone, variant + cone).mean() < 0.05 * found.mean()


def test_sensitivity_is_nought_for_the_same_and_one_for_another_photograph() -> None:
    identity = normal(0, 500, 32)
    mean = identity.mean(axis=0)
    assert geometry.sensitivity(identity, identity, mean) == pytest.approx(np.zeros(500), abs=1e-5)
    assert geometry.sensitivity(identity, np.roll(identity, 1, axis=0), mean).mean() == pytest.approx(1.0, abs=0.02)
    assert np.isnan(geometry.sensitivity(identity[:1], identity[1:2], identity[0])).all()


def test_equivariance_is_the_root_of_the_mean_cosine_of_pairs() -> None:
    identity, variant = normal(2, 15, 6), normal(3, 15, 6) + 2
    moved = (variant - identity).astype(np.float64)
    direction = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    pairs = [direction[i] @ direction[j] for i in range(15) for j in range(15) if i != j]
    value, ends, count = geometry.equivariance(identity, variant, np.arange(15), 0)
    assert count == 15
    assert value == pytest.approx(np.sqrt(np.mean(pairs)), abs=1e-5)
    assert ends is not None
    assert 0 <= ends[0] < value < ends[1] <= 1


def steer(x: np.ndarray, y: np.ndarray, fit: slice, choose: slice, score: slice) -> float | None:
    ridge = geometry.Ridge.of(x[fit])
    return geometry.steerability(
        ridge,
        y[fit],
        val_z_VK=ridge.coordinates(x[choose]),
        val_y_VD=y[choose],
        test_z_MK=ridge.coordinates(x[score]),
        test_y_MD=y[score],
    )


@pytest.mark.parametrize("train", [15, 80], ids=["dual", "primal"])
def test_steerability_equals_choosing_a_strength_by_hand(train: int) -> None:
    x = normal(12, train + 40, 30)
    y = x @ normal(13, 30, 30) * 0.3 + normal(14, train + 40, 30)
    fit, choose, score = slice(0, train), slice(train, train + 20), slice(train + 20, train + 40)
    strengths = geometry.Ridge.of(x[fit]).strengths()
    errors = [np.square(plain_ridge(x[fit], y[fit], x[choose], s) - y[choose]).sum() for s in strengths]
    predicted = plain_ridge(x[fit], y[fit], x[score], strengths[int(np.argmin(errors))])
    spread = np.square(y[score] - y[fit].mean(axis=0)).sum()
    expected = 1 - np.square(predicted - y[score]).sum() / spread
    assert steer(x, y, fit, choose, score) == pytest.approx(expected, abs=1e-3)
