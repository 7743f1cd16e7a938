"""Coarse class *tone*: how light, flat or vivid a picture is."""

from __future__ import annotations

import numpy as np

from substyle.kernels import pointwise
from substyle.pipelines.transforms import mixing
from substyle.pipelines.transforms.base import Choice, Node, OnGPU, dali


@dali(
    "brightness",
    coarse="tone",
    role="train",
    parameters=[Choice("shift", (0.2, 0.3, 0.4, 0.5), unit="full range")],
    on_gpu=OnGPU(colours=lambda canvas_BSSC, args: pointwise.brightness(args["shift"], canvas_BSSC.device)),
)
def brightness(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Lighter by a constant, cut at white."""
    from nvidia.dali import fn

    del side
    return fn.brightness(canvas, brightness_shift=args["shift"])


@dali(
    "low_contrast",
    coarse="tone",
    role="train",
    parameters=[Choice("factor", (0.3, 0.2, 0.1, 0.05))],
    # DALI takes the centre from the host alone, where the mean of a picture on the device is not known
    on_gpu=OnGPU(colours=lambda canvas_BSSC, args: pointwise.contrast(args["factor"], pointwise.mean(canvas_BSSC))),
)
def low_contrast(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Nearer to the mean of the picture (over all pixels and channels) by a factor."""
    from nvidia.dali import fn

    del side
    return fn.contrast(canvas, contrast=args["factor"], contrast_center=fn.reductions.mean(canvas))


@dali(
    "saturate",
    coarse="tone",
    role="held_out",
    parameters=[Choice("factor", (3, 5))],
    prepare=lambda args, side: mixing.chroma(np.eye(2) * args["factor"].astype(np.float64)[:, None, None]),
    version=2,
    on_gpu=mixing.ON_GPU,
)
def saturate(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Colours further from grey by a factor."""
    return mixing.mix(canvas, args, side)
