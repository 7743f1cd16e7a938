"""Pointwise colour changes against their formulas. Tolerance: rounding to a byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from substyle.kernels import color

CPU = torch.device("cpu")
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def pictures(batch: int, height: int = 13, width: int = 17) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def made(x: np.ndarray, *maps: torch.Tensor) -> np.ndarray:
    return color.colours(torch.from_numpy(x), torch.stack(maps)).numpy()


def test_tone() -> None:
    x, shift, factor = pictures(3), np.float32([0.2, 0.5, -0.3]), np.float32([0.3, 0.05, 2.0])
    mean = color.mean(torch.from_numpy(x))
    assert np.allclose(mean, x.mean(axis=(1, 2, 3)), atol=1e-4)
    lighter, flatter = made(x, color.brightness(shift, CPU), color.contrast(factor, mean))
    expected = np.clip(x + 255.0 * shift.reshape(-1, 1, 1, 1), 0, 255)
    assert np.abs(lighter - expected).max() <= 0.51
    middle = x.mean(axis=(1, 2, 3), keepdims=True)
    expected = np.clip(middle + (x - middle) * factor.reshape(-1, 1, 1, 1), 0, 255)
    assert np.abs(flatter - expected).max() <= 0.51


def test_recolouring() -> None:
    x = pictures(2)
    vivid = np.linalg.inv(YIQ) @ np.diag([1, 5, 5]) @ YIQ
    matrices = np.stack([vivid, np.eye(3)[[2, 0, 1]]])
    mixed, grey = made(x, color.linear(matrices, CPU), color.luma(2, CPU))
    assert np.abs(mixed[0] - np.clip(x[0] @ vivid.T, 0, 255)).max() <= 0.51
    assert np.array_equal(mixed[1], x[1][..., [2, 0, 1]])
    assert np.abs(grey - (x @ YIQ[0])[..., None]).max() <= 0.51
    assert (grey == grey[..., :1]).all()


def test_bands_are_negatives_and_come_last() -> None:
    x = torch.from_numpy(pictures(1))
    rows, columns = torch.zeros(1, 13, dtype=torch.uint8), torch.zeros(1, 17, dtype=torch.uint8)
    rows[0, 3:5], columns[0, 7] = 255, 255
    out = color.colours(x, color.luma(1, CPU)[None], (rows, columns))
    assert out.shape == (2, 1, 13, 17, 3)
    expected = x[0].clone()
    expected[3:5] = 255 - expected[3:5]
    expected[:, 7] = 255 - expected[:, 7]
    assert torch.equal(out[1, 0], expected)


@pytest.mark.parametrize("shape", [(0, 8, 8), (2, 1, 5), (1, 0, 4)])
def test_edges(shape: tuple[int, int, int]) -> None:
    x = torch.from_numpy(pictures(*shape))
    assert color.colours(x, color.luma(shape[0], CPU)[None]).shape == (1, *shape, 3)
    assert color.colours(x, torch.empty(0, shape[0], 3, 4)).shape == (0, *shape, 3)
    assert color.mean(x).shape == (shape[0],)
