"""Blurs against plain numpy. Tolerance: rounding, and one level for filters by Fourier transform."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from substyle.pipelines.transforms import blur

Make = Callable[..., tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]]


def correlate(image: NDArray[np.uint8], kernel: NDArray[Any]) -> NDArray[np.float64]:
    rows, columns = kernel.shape
    padded = np.pad(image.astype(np.float64), ((rows // 2,) * 2, (columns // 2,) * 2, (0, 0)), mode="reflect")
    total = np.zeros(image.shape)
    for dy, dx in zip(*np.nonzero(kernel), strict=True):
        total += kernel[dy, dx] * padded[dy : dy + image.shape[0], dx : dx + image.shape[1]]
    return total


def gaussian(sigma: float) -> NDArray[np.float64]:
    radius = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.outer(weights, weights) / weights.sum() ** 2


def test_gaussian_blur(canvas: NDArray[np.uint8], make: Make) -> None:
    made, drawn = make("gaussian_blur", canvas)
    expected = np.stack([correlate(x, gaussian(s)) for x, s in zip(canvas, drawn["sigma"], strict=True)])
    assert np.abs(made - expected).max() <= 0.51


@pytest.mark.parametrize("side", [64, 224, 300])
def test_motion_kernels_are_gaussian_lines(side: int) -> None:
    angle = np.array([-45, -20, 0, 33, 45], np.float32)
    line = np.array([(15, 5), (15, 8), (15, 12), (20, 15), (20, 15)], np.float32) * side / 224
    kernels = blur.motion_kernels({"line": line, "angle": angle}, side)["kernel"].kernel_BKL.astype(np.float64)
    y, x = (np.arange(n) - n // 2 for n in kernels.shape[1:])
    radians = np.radians(angle)
    for kernel, (radius, sigma), cosine, sine in zip(kernels, line, np.cos(radians), np.sin(radians), strict=True):
        along, across = x * cosine + y[:, None] * sine, -x * sine + y[:, None] * cosine
        assert kernel.sum() == pytest.approx(1, abs=1e-6)
        assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-6)  # centred: the image does not shift
        assert (kernel * across**2).sum() < 0.5  # thin: only the spread of sampling
        t = np.arange(-2 * radius, 2 * radius + 0.5) / 2
        t = t[np.abs(t) <= radius]
        weights = np.exp(-0.5 * (t / sigma) ** 2)
        spread = (weights * t**2).sum() / weights.sum()
        assert (kernel * along**2).sum() == pytest.approx(spread, rel=0.15, abs=0.5)


def enlarge(image: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    side = len(image)
    at = np.clip((np.arange(side) + 0.5 - side / 2) / ratio + side / 2 - 0.5, 0, side - 1)
    low = np.minimum(np.floor(at).astype(int), side - 2)
    share = at - low
    rows = image[low] * (1 - share)[:, None, None] + image[low + 1] * share[:, None, None]
    return rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]


def test_zoom_blur(canvas: NDArray[np.uint8], make: Make) -> None:
    made, drawn = make("zoom_blur", canvas)
    for image, result, zoom in zip(canvas, made, drawn["zoom"], strict=True):
        mean = image.astype(np.float64)
        for stage in range(4):
            mean = (mean + enlarge(mean, float(zoom) ** (2**stage / 15))) / 2
        assert np.abs(result - mean).max() <= 0.51


def test_zoom_blur_is_the_mean_of_sixteen_zooms(make: Make) -> None:
    y, x = np.mgrid[0:96, 0:96] / 96
    smooth = np.stack([127 + 100 * np.sin(9 * x), 127 + 100 * np.cos(8 * y), 255 * x * y], axis=2).astype(np.uint8)
    made, drawn = make("zoom_blur", smooth[None])
    zooms = float(drawn["zoom"][0]) ** (np.arange(16) / 15)
    expected = np.mean([enlarge(smooth.astype(np.float64), z) for z in zooms], axis=0)
    assert np.abs(made[0] - expected).mean() < 0.7


def test_strengths_scale_with_the_side() -> None:
    args = {"radius": np.array([10 * 448 / 224], np.float32)}
    assert blur.disk_kernels(args, 448)["kernel"].kernel_BKL.shape == (1, 45, 45)
    assert blur.gaussian_lines({"sigma": np.array([12], np.float32)}, 448)["across"].kernel_BKL.shape == (1, 1, 73)
