"""Kinds *recolor* and *tone*: changes of colour."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.pipelines.transforms.base import Arrays, Choice, Node, Uniform, beside, dali, is_on_gpu

# On a CPU, linear colour maps are 3 x 1 filters over the image laid out as three rows, one per channel: a third of the
# time of DALI's colour operators (fn.hue, fn.saturation, fn.hsv), whose pixels differ by at most one level. On a GPU,
# that layout passes through memory seven times.

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


PERMUTATIONS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # all but the identity


def _rotations(args: Arrays, side: int) -> Arrays:
    angle_B = np.radians(args["hue"].astype(np.float64))
    cos_B, sin_B = np.cos(angle_B), np.sin(angle_B)
    return {**args, **chroma(np.stack([np.stack([cos_B, sin_B], -1), np.stack([-sin_B, cos_B], -1)], -2))}


def _scales(args: Arrays, side: int) -> Arrays:
    return {**args, **chroma(np.eye(2) * args["factor"].astype(np.float64)[:, None, None])}


@dali(
    "hue_shift",
    kind="recolor",
    role="train",
    parameters=[Uniform("hue", 36, 180, unit="degree", signed=True)],
    prepare=_rotations,
    version=2,
)
def hue_shift(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Hue rotation in DALI's linear hue space."""
    from nvidia.dali import fn

    return fn.hsv(canvas, hue=args["hue"]) if is_on_gpu(canvas) else mix(canvas, args, side)


@dali("grayscale", kind="recolor", role="train")
def grayscale(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Luma (ITU-R BT.601) in all three channels."""
    from nvidia.dali import fn, types

    del args, side
    luma = fn.color_space_conversion(canvas, image_type=types.RGB, output_type=types.GRAY)
    return fn.color_space_conversion(luma, image_type=types.GRAY, output_type=types.RGB)


@dali(
    "channel_permute",
    kind="recolor",
    role="held_out",
    parameters=[Choice("order", PERMUTATIONS)],
    prepare=lambda args, side: weights(np.eye(3)[args["order"].astype(np.int64)]),
)
def channel_permute(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Output channel i is input channel ``order[i]``."""
    return mix(canvas, args, side)


@dali(
    "brightness",
    kind="tone",
    role="train",
    parameters=[Choice("shift", (0.2, 0.3, 0.4, 0.5), unit="full range")],
)
def brightness(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Add a constant, clipped at white."""
    from nvidia.dali import fn

    del side
    return fn.brightness(canvas, brightness_shift=args["shift"])


@dali(
    "low_contrast",
    kind="tone",
    role="train",
    parameters=[Choice("factor", (0.3, 0.2, 0.1, 0.05))],
)
def low_contrast(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Scale the difference from the image's mean (over all pixels and channels) by a factor."""
    from nvidia.dali import fn, types

    del side
    mean = fn.reductions.mean(canvas)
    if not is_on_gpu(canvas):
        return fn.contrast(canvas, contrast=args["factor"], contrast_center=mean)
    factor = beside(canvas, args["factor"])  # the operator takes the centre from the host, which would wait for it
    return fn.cast(canvas * factor + mean * (1.0 - factor), dtype=types.UINT8)


@dali(
    "saturate",
    kind="tone",
    role="held_out",
    parameters=[Choice("factor", (3, 5))],
    prepare=_scales,
    version=2,
)
def saturate(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Scale saturation by a factor."""
    from nvidia.dali import fn

    return fn.hsv(canvas, saturation=args["factor"]) if is_on_gpu(canvas) else mix(canvas, args, side)
