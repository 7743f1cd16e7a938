"""Displacement fields against scipy, a plain loop and their torch references; banded matrices against dense ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from substyle.kernels import displacement, philox
from substyle.kernels.displacement import Banded, mirrored

KEYS = philox.image_keys(0, ["a", "b", "c"])


@pytest.mark.parametrize(("side", "sigma"), [(64, 2.24), (17, 0.96)])
def test_elastic_is_blurred_uniform_noise(side: int, sigma: float) -> None:
    amplitude = np.array([16, 25, 30], np.float32)
    got = displacement.elastic(KEYS, "e", side, amplitude, sigma)
    assert got.shape == (3, 2, side, side)
    assert (got - displacement.elastic_reference(KEYS, "e", side, amplitude, sigma)).abs().max() < 1e-4
    bits = philox.bits16_torch(KEYS, "e", 2 * side * side, torch.device("cpu")).double().numpy()
    noise = ((bits + 0.5) / 32768 - 1).reshape(3, 2, side, side)
    for i in range(3):
        for axis in range(2):
            blurred = ndimage.gaussian_filter(noise[i, axis], sigma, mode="mirror", truncate=3) * amplitude[i]
            assert np.abs(got[i, axis].numpy() - blurred).max() < 1e-4


def test_blur_weights() -> None:
    weights = displacement.blur_weights(2.24)
    assert len(weights) == 15
    assert weights.sum() == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(weights, weights[::-1])
    assert len(displacement.blur_weights(0.05)) == 3


def test_swirl_follows_its_formula() -> None:
    centre = np.array([[10, 14], [20.5, 3]], np.float32)
    radius, strength = np.array([16, 20], np.float32), np.array([3, 5.5], np.float32)
    got = displacement.swirl(32, centre, radius, strength)
    assert (got - displacement.swirl_reference(32, centre, radius, strength)).abs().max() < 1e-4
    for i in range(2):
        for y, x in ((0, 0), (14, 10), (3, 20), (31, 7)):
            dx, dy = x - float(centre[i, 0]), y - float(centre[i, 1])
            r, angle = math.hypot(dx, dy), math.atan2(dy, dx)
            angle += float(strength[i]) * math.exp(-r / (float(radius[i]) * math.log(2) / 5))
            expected = (r * math.cos(angle) - dx, r * math.sin(angle) - dy)
            assert got[i, :, y, x].tolist() == pytest.approx(expected, abs=1e-4)


def band(outputs: int, inputs: int, radius: int, seed: int = 0) -> np.ndarray:
    """Random values near the diagonal, zeros elsewhere, and one zero row."""
    rng = np.random.default_rng(seed)
    middle = np.linspace(0, inputs - 1, outputs)[:, None]
    matrix = np.where(np.abs(np.arange(inputs) - middle) <= radius, rng.normal(size=(outputs, inputs)), 0)
    matrix[outputs // 2] = 0
    return matrix


@pytest.mark.parametrize(
    ("outputs", "inputs", "radius"),
    [(224, 224, 7), (17, 5, 1), (5, 90, 8), (1, 1, 1), (33, 700, 700)],
)
def test_banded_products_are_dense_ones(outputs: int, inputs: int, radius: int) -> None:
    matrix = band(outputs, inputs, radius)
    x = np.random.default_rng(1).normal(size=(3, inputs, 523)).astype(np.float32)
    made = Banded(matrix).down(x, np.empty((3, outputs, 523), np.float32))
    assert np.allclose(made, matrix @ x, atol=1e-4)
    turned = np.ascontiguousarray(x.swapaxes(1, 2))
    made = Banded(matrix).across(turned, np.empty((3, 523, outputs), np.float32))
    assert np.allclose(made, turned @ matrix.T, atol=1e-4)


@pytest.mark.parametrize(("side", "radius"), [(20, 4), (5, 7), (1, 2)])
def test_mirrored_borders(side: int, radius: int) -> None:
    weights, line = np.random.default_rng(0).normal(size=2 * radius + 1), np.random.default_rng(1).normal(size=side)
    padded = np.pad(line, radius, mode="reflect")
    assert np.allclose(mirrored(weights, side) @ line, np.correlate(padded, weights, mode="valid"))
