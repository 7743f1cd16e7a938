"""Inverted bands are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Make = Callable[..., tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]]


def test_inverted_lines(canvas: NDArray[np.uint8], make: Make) -> None:
    many = np.repeat(canvas, 3, axis=0)
    made, drawn = make("inverted_lines", many)
    side = many.shape[1]
    for image, result, band, phase, vertical in zip(
        many, made, drawn["band"], drawn["phase"], drawn["vertical"], strict=True
    ):
        picture, bands = (image, result) if not vertical else (image.swapaxes(0, 1), result.swapaxes(0, 1))
        inverted = [(bands[i] == 255 - picture[i]).all() for i in range(side)]
        kept = [(bands[i] == picture[i]).all() for i in range(side)]
        assert all(a or b for a, b in zip(inverted, kept, strict=True))
        starts = 1 + np.flatnonzero(np.diff(np.array(inverted, int)))
        assert len(starts) in (int((side - 1) // band), int((side - 1) // band) + 1)
        assert np.abs(np.diff(starts) - band).max(initial=0) <= 1
        expected = np.floor((np.arange(side) + 0.5) / band + 2 * phase) % 2 == 1
        assert (np.array(inverted) == expected).all()
    assert set(drawn["vertical"]) == {0, 1}
