"""Recolouring against its formulas. Tolerance: rounding to a byte, and for hue DALI's single precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Make = Callable[..., tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]]

# RGB to YIQ, as in DALI's colour operators
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def test_hue_shift(canvas: NDArray[np.uint8], make: Make) -> None:
    made, drawn = make("hue_shift", canvas)
    for image, result, degrees in zip(canvas, made, drawn["hue"], strict=True):
        a = math.radians(degrees)
        turn = np.array([[1, 0, 0], [0, math.cos(a), math.sin(a)], [0, -math.sin(a), math.cos(a)]])
        expected = np.clip(image @ (np.linalg.inv(YIQ) @ turn @ YIQ).T, 0, 255)
        assert np.abs(result - expected).max() <= 0.51


def test_channel_permute(canvas: NDArray[np.uint8], make: Make) -> None:
    many = np.repeat(canvas, 5, axis=0)
    made, drawn = make("channel_permute", many)
    orders = drawn["order"].astype(int)
    expected = np.stack([image[..., order] for image, order in zip(many, orders, strict=True)])
    assert np.array_equal(made, expected)
    assert len({tuple(order) for order in orders.tolist()}) == 5  # all except the identity
    assert (0, 1, 2) not in {tuple(order) for order in orders.tolist()}
