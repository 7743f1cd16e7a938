"""Coarse classes *recolor* and *tone*: changes of colour."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import color
from substyle.pipelines.transforms.base import Arrays, Choice, Node, OnGPU, Uniform, beside, dali

# Linear colour maps in DALI are 3 x 1 filters over the image laid out as three rows, one per channel: a third of the
# time of DALI's colour operators (fn.hue, fn.saturation, fn.hsv) for the same pixels. On a GPU this layout would pass
# through memory seven times; a kernel applies all maps in one read.

# RGB to luma and two chroma components (YIQ), with the constants of DALI's colour operators
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_CHANNELS = ("red", "green", "blue")


def weights(matrix_B33: NDArray[Any]) -> Arrays:
    """Arguments of :func:`mix`: weights of each output channel. Shape: (B, 3, 1) float32 each."""
    matrix_B33 = np.asarray(matrix_B33, dtype=np.float32)
    return {name: np.ascontiguousarray(matrix_B33[:, i, :, None]) for i, name in enumerate(_CHANNELS)}


def chroma(matrix_B22: NDArray[np.float64]) -> Arrays:
    """Weights that multiply chroma (I, Q) by a matrix and keep luma."""
    matrix_B33 = np.zeros((len(matrix_B22), 3, 3))
    matrix_B33[:, 0, 0] = 1.0
    matrix_B33[:, 1:, 1:] = matrix_B22
    return weights(np.linalg.inv(YIQ) @ matrix_B33 @ YIQ)


def mix(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Apply a linear colour map, rounded and clipped to uint8."""
    from nvidia.dali import fn, types

    def laid_out(image: Node, layout: str) -> Node:
        return fn.crop_mirror_normalize(image, dtype=types.UINT8, output_layout=layout, mean=[0.0], std=[1.0])

    rows = fn.reinterpret(laid_out(canvas, "CHW"), shape=[3, side * side, 1], layout="HWC")
    mixed = fn.cat(*(fn.filter(rows, beside(rows, args[name]), mode="valid") for name in _CHANNELS), axis=0)
    return laid_out(fn.reinterpret(mixed, shape=[3, side, side], layout="CHW"), "HWC")


def _map(canvas_BSSC: torch.Tensor, args: Arrays) -> torch.Tensor:
    matrix_B33 = np.stack([args[name][:, :, 0] for name in _CHANNELS], axis=1)
    return color.linear(matrix_B33, canvas_BSSC.device)


ON_GPU = OnGPU(colours=_map)  # same map and arguments as mix


PERMUTATIONS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # all but the identity


def _rotations(args: Arrays, side: int) -> Arrays:
    angle_B = np.radians(args["hue"].astype(np.float64))
    cos_B, sin_B = np.cos(angle_B), np.sin(angle_B)
    return chroma(np.stack([np.stack([cos_B, sin_B], -1), np.stack([-sin_B, cos_B], -1)], -2))


@dali(
    "hue_shift",
    coarse="recolor",
    role="train",
    parameters=[Uniform("hue", 36, 180, unit="degree", signed=True)],
    prepare=_rotations,
    version=2,
    on_gpu=ON_GPU,
)
def hue_shift(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Hue rotation in DALI's linear hue space."""
    return mix(canvas, args, side)


@dali(
    "grayscale",
    coarse="recolor",
    role="train",
    on_gpu=OnGPU(colours=lambda canvas_BSSC, args: color.luma(len(canvas_BSSC), canvas_BSSC.device)),
)
def grayscale(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Luma (ITU-R BT.601) in all three channels."""
    from nvidia.dali import fn, types

    del args, side
    luma = fn.color_space_conversion(canvas, image_type=types.RGB, output_type=types.GRAY)
    return fn.color_space_conversion(luma, image_type=types.GRAY, output_type=types.RGB)


@dali(
    "channel_permute",
    coarse="recolor",
    role="held_out",
    parameters=[Choice("order", PERMUTATIONS)],
    prepare=lambda args, side: weights(np.eye(3)[args["order"].astype(np.int64)]),
    on_gpu=ON_GPU,
)
def channel_permute(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Output channel i is input channel ``order[i]``."""
    return mix(canvas, args, side)


@dali(
    "brightness",
    coarse="tone",
    role="train",
    parameters=[Choice("shift", (0.2, 0.3, 0.4, 0.5), unit="full range")],
    on_gpu=OnGPU(colours=lambda canvas_BSSC, args: color.brightness(args["shift"], canvas_BSSC.device)),
)
def brightness(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Add a constant, clipped at white."""
    from nvidia.dali import fn

    del side
    return fn.brightness(canvas, brightness_shift=args["shift"])


@dali(
    "low_contrast",
    coarse="tone",
    role="train",
    parameters=[Choice("factor", (0.3, 0.2, 0.1, 0.05))],
    # DALI takes the centre from the host, where the mean of an image on the device is unknown
    on_gpu=OnGPU(colours=lambda canvas_BSSC, args: color.contrast(args["factor"], color.mean(canvas_BSSC))),
)
def low_contrast(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Scale the difference from the image's mean (over all pixels and channels) by a factor."""
    from nvidia.dali import fn

    del side
    return fn.contrast(canvas, contrast=args["factor"], contrast_center=fn.reductions.mean(canvas))


@dali(
    "saturate",
    coarse="tone",
    role="held_out",
    parameters=[Choice("factor", (3, 5))],
    prepare=lambda args, side: chroma(np.eye(2) * args["factor"].astype(np.float64)[:, None, None]),
    version=2,
    on_gpu=ON_GPU,
)
def saturate(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Scale saturation by a factor."""
    return mix(canvas, args, side)
