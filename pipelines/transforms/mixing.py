"""Linear maps of colours in a DALI graph: each new channel is a weighted sum of the three there are.

DALI's own colour operators (fn.hue, fn.saturation, fn.hsv) take three times as long for the same pixels. Here the
picture is laid out as three rows, one for each channel, over which a filter of 3 x 1 weighs the channels. On a GPU,
where such a picture would go through memory seven times, a kernel makes all of them from one read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import pointwise
from substyle.pipelines.transforms.base import Arrays, Node, OnGPU, beside

# RGB to luma and two chroma components (YIQ), with the digits that DALI's colour operators use.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_CHANNELS = ("red", "green", "blue")


def weights(matrix_B33: NDArray[Any]) -> Arrays:
    """The arguments of :func:`mix`: the weights of each output channel. Shape: (B, 3, 1) float32 each."""
    matrix_B33 = np.asarray(matrix_B33, dtype=np.float32)
    return {name: np.ascontiguousarray(matrix_B33[:, i, :, None]) for i, name in enumerate(_CHANNELS)}


def chroma(matrix_B22: NDArray[np.float64]) -> Arrays:
    """Weights that map chroma (I, Q) by a matrix and keep luma."""
    matrix_B33 = np.zeros((len(matrix_B22), 3, 3))
    matrix_B33[:, 0, 0] = 1.0
    matrix_B33[:, 1:, 1:] = matrix_B22
    return weights(np.linalg.inv(YIQ) @ matrix_B33 @ YIQ)


def mix(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """The canvas with its colours mixed, rounded and cut to bytes."""
    from nvidia.dali import fn, types

    def laid_out(image: Node, layout: str) -> Node:
        return fn.crop_mirror_normalize(image, dtype=types.UINT8, output_layout=layout, mean=[0.0], std=[1.0])

    rows = fn.reinterpret(laid_out(canvas, "CHW"), shape=[3, side * side, 1], layout="HWC")
    mixed = fn.cat(*(fn.filter(rows, beside(rows, args[name]), mode="valid") for name in _CHANNELS), axis=0)
    return laid_out(fn.reinterpret(mixed, shape=[3, side, side], layout="CHW"), "HWC")


def _map(canvas_BSSC: torch.Tensor, args: Arrays) -> torch.Tensor:
    matrix_B33 = np.stack([args[name][:, :, 0] for name in _CHANNELS], axis=1)
    return pointwise.linear(matrix_B33, canvas_BSSC.device)


ON_GPU = OnGPU(colours=_map)  # the same as mix, of the same arguments
