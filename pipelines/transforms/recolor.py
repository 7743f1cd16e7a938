"""Coarse class *recolor*: other colours, same shapes."""

from __future__ import annotations

import numpy as np

from substyle.pipelines.transforms.base import Choice, Node, Uniform, dali

PERMUTATIONS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # all but the identity


@dali("hue_shift", coarse="recolor", role="train", parameters=[Uniform("hue", 36, 180, unit="degree", signed=True)])
def hue_shift(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Hue rotated in DALI's linear hue space."""
    from nvidia.dali import fn

    del side
    return fn.hue(canvas, hue=args["hue"])


@dali("grayscale", coarse="recolor", role="train")
def grayscale(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Luma (ITU-R BT.601) in all three channels."""
    from nvidia.dali import fn, types

    del args, side
    luma = fn.color_space_conversion(canvas, image_type=types.RGB, output_type=types.GRAY)
    return fn.cat(luma, luma, luma, axis=2)


@dali(
    "channel_permute",
    coarse="recolor",
    role="held_out",
    parameters=[Choice("order", PERMUTATIONS)],
    prepare=lambda args, side: {"order": args["order"].astype(np.int32)},
)
def channel_permute(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Output channel i is input channel ``order[i]``."""
    from nvidia.dali import fn

    del side
    order = args["order"]
    return fn.cat(*(fn.slice(canvas, start=order[i : i + 1], shape=[1], axes=[2]) for i in range(3)), axis=2)
