"""Random draws depend only on (study seed, image key, transformation name) and have the declared distributions.

Statistics use fixed seeds and keys, so results are reproducible; fewer than one fair sequence in ten thousand would
exceed the bounds.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from substyle.kernels import philox
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, suite

load_all()
DRAWING = tuple(name for name in suite("substance31") if base.get(name).parameters)
MANY = 20_000
LEAST_P = 1e-5


@cache
def image_keys(seed: int = 0, prefix: str = "train/n") -> NDArray[np.uint64]:
    return philox.image_keys(seed, [f"{prefix}{i % 10}/{i}.JPEG" for i in range(MANY)])


def plain(name: str) -> base.Transformation:
    """The transformation without ``prepare``, to get the declared parameters."""
    return replace(base.get(name), prepare=None, split_assets=False)


@pytest.mark.parametrize("name", DRAWING)
def test_parameters_are_distributed_as_declared(name: str) -> None:
    drawn = plain(name).draw(image_keys(), base.CANVAS)
    for parameter in base.get(name).parameters:
        values = drawn[parameter.name]
        scale = base.CANVAS if parameter.unit == "S" else 1
        if isinstance(parameter, base.Choice):
            table = np.asarray(parameter.values, np.float32).reshape(len(parameter.values), -1) * np.float32(scale)
            counts = [(values.reshape(MANY, -1) == row).all(axis=1).sum() for row in table]
            assert sum(counts) == MANY
            if len(counts) > 1:
                assert stats.chisquare(counts).pvalue > LEAST_P, parameter.name
            continue
        low, high = np.float32(parameter.low * scale), np.float32(parameter.high * scale)
        for column in values.reshape(MANY, -1).T:
            size = np.abs(column) if parameter.signed else column
            assert low <= size.min()
            assert size.max() <= high
            assert stats.kstest(size, stats.uniform(low, high - low).cdf).pvalue > LEAST_P, parameter.name
            if parameter.signed:
                assert stats.binomtest(int((column < 0).sum()), MANY).pvalue > LEAST_P


def test_draws_are_independent() -> None:
    """Of each other, other transformations, neighbouring keys, another seed and other names."""

    def uniforms(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        counts = {name: sum(p.draws for p in base.get(name).parameters) for name in DRAWING}
        return np.concatenate([philox.uniforms(keys, name, count) for name, count in counts.items()], axis=1)

    some = MANY // 4
    first, second, third = (uniforms(keys[:some]) for keys in (image_keys(), image_keys(1), image_keys(0, "val/n")))
    everything = np.concatenate([first, np.roll(first, 1, axis=0), second, third], axis=1)
    correlation = np.corrcoef(everything, rowvar=False)
    np.fill_diagonal(correlation, 0)
    # the expected maximum over several hundred thousand pairs of columns is about 4.9 standard errors
    assert np.abs(correlation).max() < 6 / np.sqrt(some)
    assert len(np.unique(first, axis=0)) == some


def test_pixel_noise_is_uniform_and_keyed() -> None:
    size = 224 * 224 * 3
    keys = philox.image_keys(0, ["a", "b"])

    def bits(key: np.uint64, name: str) -> NDArray[np.float64]:
        out = np.empty(size, np.uint16)
        philox.bits16(key, name, out)
        assert stats.chisquare(np.bincount(out >> 6, minlength=1024)).pvalue > LEAST_P
        return out.astype(np.float64)

    rows = [bits(key, name) for key in keys for name in ("gaussian_noise", "impulse_noise", "shot_noise", "elastic")]
    shifted = [np.roll(rows[0], lag) for lag in (1, 2, 3, 8, 224 * 3)]  # next channel, pixel, block and row
    correlation = np.corrcoef(np.stack([*rows, *shifted]))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / np.sqrt(size)
