import numpy as np
import pytest
from sklearn.metrics.pairwise import paired_cosine_distances
from tests.conftest import slow_after

from substyle.engine.analysis import geometry
from substyle.engine.analysis.geometry import unit


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, strength: float) -> np.ndarray:
    """Ridge regression with an intercept from the normal equations in float64."""
    x, y, new = (a.astype(np.float64) for a in (x, y, new))
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    a = (x - mean_x).T @ (x - mean_x) + strength * np.eye(x.shape[1])
    return (new - mean_x) @ np.linalg.solve(a, (x - mean_x).T @ (y - mean_y)) + mean_y


def test_cosines_equal_the_formula() -> None:
    a, b = normal(0, 20, 7), normal(1, 20, 7)
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert geometry.cosines(a, b) == pytest.approx(expected, abs=1e-6)


def test_the_cosine_with_a_zero_row_is_zero() -> None:
    assert geometry.cosines(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)).tolist() == [0.0]


def test_large_half_precision_values_do_not_overflow() -> None:
    x = np.full((1, 4096), 65504, np.float16)
    assert unit(x) == pytest.approx(np.full((1, 4096), 1 / 64), rel=1e-5)
    assert geometry.cosines(x.astype(np.float32), x.astype(np.float32)) == pytest.approx([1.0], abs=1e-5)


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


def equivariance(identity: np.ndarray, variant: np.ndarray) -> float | None:
    return geometry.equivariance(identity, variant, np.arange(len(identity)), 0)[0]


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


def test_equivariance_is_one_for_parallel_displacements_of_any_length() -> None:
    identity = normal(4, 30, 10)
    step = np.abs(normal(5, 30, 1)) + 0.1
    assert equivariance(identity, identity + step * normal(6, 1, 10)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("images", slow_after(2, [3, 10, 300]))
def test_equivariance_does_not_depend_on_the_number_of_images(images: int) -> None:
    """Squares have no bias. With the image itself in the mean, three unrelated displacements would have 0.58."""
    values = [equivariance(np.zeros((images, 64)), normal(100 + s, images, 64) + 1) for s in range(200)]
    many = equivariance(np.zeros((20_000, 64)), normal(1, 20_000, 64) + 1)
    assert many == pytest.approx(0.7, abs=0.02)
    assert np.mean(np.square(values)) == pytest.approx(np.square(many), abs=0.01)
    unrelated = [equivariance(np.zeros((images, 64)), normal(s, images, 64)) for s in range(50)]
    assert np.mean(unrelated) < (0.2 if images < 300 else 0.05)


def test_intervals_of_equivariance_cover() -> None:
    truth, covered = equivariance(np.zeros((50_000, 16)), normal(0, 50_000, 16) + 0.3), 0
    for s in range(200):
        low, high = geometry.equivariance(np.zeros((20, 16)), normal(s + 1, 20, 16) + 0.3, np.arange(20), s)[1] or (
            1,
            0,
        )
        covered += low <= (truth or 0) <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_equivariance_leaves_out_images_that_do_not_move() -> None:
    identity = normal(7, 8, 5)
    variant = identity + np.r_[np.zeros((3, 5)), normal(8, 5, 5) + 1].astype(np.float32)
    assert equivariance(identity, variant) == pytest.approx(equivariance(identity[3:], variant[3:]), abs=1e-6)
    assert geometry.equivariance(identity, variant, np.arange(8), 0)[2] == 5  # the units of its interval
    assert geometry.equivariance(identity, identity, np.arange(8), 0) == (None, None, 0)
    assert geometry.equivariance(identity[2:4], variant[2:4], np.arange(2), 0) == (None, None, 1)


@pytest.mark.parametrize(("images", "width"), [(12, 40), (40, 12), (20, 20)], ids=["dual", "primal", "square"])
def test_ridge_predictions_equal_the_normal_equations(images: int, width: int) -> None:
    x, y, new = normal(9, images, width) + 3, normal(10, images, 5) - 2, normal(11, 7, width) + 3
    ridge = geometry.Ridge.of(x)
    target = ridge.basis_NK.T @ (y - y.mean(axis=0))
    for strength in ridge.strengths()[2:]:
        found = (ridge.coordinates(new) / (ridge.eigenvalue_K + strength)) @ target + y.mean(axis=0)
        assert found == pytest.approx(plain_ridge(x, y, new, strength), abs=2e-3)


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


def test_a_linear_map_is_steerable_and_noise_is_not() -> None:
    x, noise = normal(15, 300, 20), normal(16, 300, 20)
    fit, choose, score = slice(0, 200), slice(200, 250), slice(250, 300)
    linear = steer(x, x @ normal(17, 20, 20) + 5, fit, choose, score)
    assert linear is not None
    assert linear > 0.999
    unrelated = steer(x, noise, fit, choose, score)
    assert unrelated is not None
    assert -0.1 < unrelated < 0.05


def test_steerability_without_images_or_spread_is_unknown() -> None:
    x, constant = normal(18, 10, 4), np.ones((10, 4), np.float32)
    assert steer(x, x, slice(0, 8), slice(8, 10), slice(10, 10)) is None
    assert steer(x, x, slice(0, 8), slice(8, 8), slice(8, 10)) is None
    assert steer(constant, constant, slice(0, 6), slice(6, 8), slice(8, 10)) is None


def test_equal_inputs_predict_the_mean() -> None:
    y = normal(19, 30, 4)
    r2 = steer(np.ones((30, 6), np.float32), y, slice(0, 20), slice(20, 25), slice(25, 30))
    assert r2 == pytest.approx(0.0, abs=1e-5)


def test_unchanged_r2_equals_the_formula() -> None:
    train, identity, variant = normal(20, 9, 5), normal(21, 6, 5), normal(22, 6, 5)
    spread = np.square(variant - train.mean(axis=0)).sum()
    expected = 1 - np.square(variant - identity).sum() / spread
    assert geometry.unchanged_r2(train, identity, variant) == pytest.approx(expected, rel=1e-4)
    assert geometry.unchanged_r2(train[:0], identity, variant) is None
