"""Coarse class *recolor*: other colours, same shapes."""

from __future__ import annotations

import numpy as np

from substyle.kernels import pointwise
from substyle.pipelines.transforms import mixing
from substyle.pipelines.transforms.base import Arrays, Choice, Node, OnGPU, Uniform, dali

PERMUTATIONS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # all but the identity


def _rotations(args: Arrays, side: int) -> Arrays:
    angle_B = np.radians(args["hue"].astype(np.float64))
    cos_B, sin_B = np.cos(angle_B), np.sin(angle_B)
    return mixing.chroma(np.stack([np.stack([cos_B, sin_B], -1), np.stack([-sin_B, cos_B], -1)], -2))


@dali(
    "hue_shift",
    coarse="recolor",
    role="train",
    parameters=[Uniform("hue", 36, 180, unit="degree", signed=True)],
    prepare=_rotations,
    version=2,
    on_gpu=mixing.ON_GPU,
)
def hue_shift(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Hue rotated in DALI's linear hue space."""
    return mixing.mix(canvas, args, side)


@dali(
    "grayscale",
    coarse="recolor",
    role="train",
    on_gpu=OnGPU(colours=lambda canvas_BSSC, args: pointwise.luma(len(canvas_BSSC), canvas_BSSC.device)),
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
    prepare=lambda args, side: mixing.weights(np.eye(3)[args["order"].astype(np.int64)]),
    on_gpu=mixing.ON_GPU,
)
def channel_permute(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Output channel i is input channel ``order[i]``."""
    return mixing.mix(canvas, args, side)
