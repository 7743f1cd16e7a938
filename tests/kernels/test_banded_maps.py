"""Banded matrices against dense ones, and mirrored borders against numpy's padding."""

from __future__ import annotations

import numpy as np
import pytest

from substyle.kernels.displacement import Banded, mirrored


def band(outputs: int, inputs: int, radius: int, seed: int = 0) -> np.ndarray:
    """Random values near the diagonal, zeros elsewhere, and one zero row."""
    rng = np.random.default_rng(seed)
    middle = np.linspace(0, inputs - 1, outputs)[:, None]
    matrix = np.where(np.abs(np.arange(inputs) - middle) <= radius, rng.normal(size=(outputs, inputs)), 0)
    matrix[outputs // 2] = 0
    return matrix


@pytest.mark.parametrize(
    ("outputs", "inputs", "radius"),
    [(224, 224, 7), (97, 97, 3), (17, 5, 1), (5, 90, 8), (1, 1, 1), (16, 16, 16), (448, 448, 20), (33, 700, 700)],
)
@pytest.mark.parametrize("planes", [1, 3])
def test_equals_dense_products(outputs: int, inputs: int, radius: int, planes: int) -> None:
    matrix = band(outputs, inputs, radius)
    x = np.random.default_rng(1).normal(size=(planes, inputs, 523)).astype(np.float32)
    made = Banded(matrix).down(x, np.empty((planes, outputs, 523), np.float32))
    assert np.allclose(made, matrix @ x, atol=1e-4)
    turned = np.ascontiguousarray(x.swapaxes(1, 2))
    made = Banded(matrix).across(turned, np.empty((planes, 523, outputs), np.float32))
    assert np.allclose(made, turned @ matrix.T, atol=1e-4)


@pytest.mark.parametrize(("side", "radius"), [(20, 4), (9, 8), (5, 7), (2, 3), (1, 2)])
def test_mirrored_borders(side: int, radius: int) -> None:
    weights, line = np.random.default_rng(0).normal(size=2 * radius + 1), np.random.default_rng(1).normal(size=side)
    padded = np.pad(line, radius, mode="reflect")
    assert np.allclose(mirrored(weights, side) @ line, np.correlate(padded, weights, mode="valid"))
