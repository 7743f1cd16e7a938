"""Tone against its formulas. Tolerance: rounding to a byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Make = Callable[..., tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]]

# RGB to YIQ, as in DALI's colour operators
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def test_brightness(canvas: NDArray[np.uint8], make: Make) -> None:
    made, drawn = make("brightness", canvas)
    expected = np.clip(canvas + 255.0 * drawn["shift"].reshape(-1, 1, 1, 1), 0, 255)
    assert np.abs(made - expected).max() <= 0.51


def test_saturate(canvas: NDArray[np.uint8], make: Make) -> None:
    made, drawn = make("saturate", canvas)
    for image, result, factor in zip(canvas, made, drawn["factor"], strict=True):
        expected = np.clip(image @ (np.linalg.inv(YIQ) @ np.diag([1, factor, factor]) @ YIQ).T, 0, 255)
        assert np.abs(result - expected).max() <= 0.51
