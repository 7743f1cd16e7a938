"""The costly image operations of the plain script, by OpenCV if installed, else by SciPy.

Pictures are (S, S, 3) uint8; borders are mirrored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

try:
    import cv2
except ImportError:
    cv2 = None

LIBRARY = "SciPy" if cv2 is None else "OpenCV"
if cv2 is not None:
    cv2.setNumThreads(1)  # the parallelism is over workers


def gaussian_blur(picture: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Blur each channel with a Gaussian, truncated at three sigma."""
    if cv2 is not None:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))
    axes = (sigma, sigma, 0) if picture.ndim == 3 else sigma
    return np.asarray(ndimage.gaussian_filter(picture, axes, mode="mirror", truncate=3))


def filter2d(picture: U8, kernel: F32) -> U8:
    """Correlate each channel with a kernel of odd size."""
    if cv2 is not None:
        return np.asarray(cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REFLECT_101))
    down, across = (n // 2 for n in kernel.shape)
    padded = np.pad(picture, ((down, down), (across, across), (0, 0)), mode="reflect").astype(np.float32)
    channels = [signal.fftconvolve(padded[..., c], kernel[::-1, ::-1], mode="valid") for c in range(3)]
    return np.clip(np.stack(channels, axis=2) + 0.5, 0, 255).astype(np.uint8)


def remap(picture: U8, x: F32, y: F32) -> U8:
    """Sample a picture at x, y in px, bilinear. Shape of x and y: (S, S)."""
    if cv2 is not None:
        return np.asarray(cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))
    channels = [ndimage.map_coordinates(picture[..., c], [y, x], order=1, mode="mirror") for c in range(3)]
    return np.stack(channels, axis=2)


def enlarge(field: F32, side: int) -> F32:
    """Enlarge a grid of node values, linear between nodes. Shape: (K, K) to (S, S)."""
    at = np.linspace(0, len(field) - 1, side, dtype=np.float32)
    x, y = np.meshgrid(at, at)
    if cv2 is not None:
        return np.asarray(cv2.remap(field, x, y, cv2.INTER_LINEAR))
    return np.asarray(ndimage.map_coordinates(field, [y, x], order=1), dtype=np.float32)
