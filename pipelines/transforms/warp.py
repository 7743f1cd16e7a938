"""Kind *warp*: elastic, grid distortion and swirl; bilinear, with mirrored borders."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import warp
from substyle.kernels.dispatch import upload
from substyle.pipelines.transforms.base import Arrays, Choice, Uniform, kernel

Keys = NDArray[np.uint64]

SMOOTHING = 0.01  # standard deviation of the elastic field's blur, in canvas sides
CELLS = 5  # of the distorted grid, along each axis


@kernel(
    "elastic",
    kind="warp",
    role="train",
    parameters=[
        Choice("amplitude", (16, 21, 25, 30), unit="px"),
        Choice("smoothing", (SMOOTHING,), unit="S", within=(SMOOTHING, SMOOTHING)),
    ],
    version=2,
)
def elastic(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Move every pixel by a smooth random displacement; ``amplitude`` applies before smoothing."""
    return warp.elastic(canvas_BSSC, keys_B, "elastic", args["amplitude"], SMOOTHING * canvas_BSSC.shape[1])


def _nodes(args: Arrays, side: int) -> Arrays:
    """``nodes``: (B, 2, 6, 6) float32, displacements in pixels."""
    return {"nodes": args["stretch"].reshape(-1, 2, CELLS + 1, CELLS + 1) * np.float32((side - 1) / CELLS)}


@kernel(
    "grid_distortion",
    kind="warp",
    role="train",
    parameters=[Uniform("stretch", -0.3, 0.3, unit="of a cell", count=2 * (CELLS + 1) ** 2)],
    prepare=_nodes,
    version=2,
)
def grid_distortion(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Move the nodes of a grid of 5 x 5 cells along both axes; the image follows, linearly between nodes."""
    return warp.grid(canvas_BSSC, upload(args["nodes"], canvas_BSSC.device))


@kernel(
    "swirl",
    kind="warp",
    role="held_out",
    parameters=[
        Uniform("centre_x", 0.3, 0.7, unit="S"),
        Uniform("centre_y", 0.3, 0.7, unit="S"),
        Uniform("radius", 0.5, 0.75, unit="S"),
        Uniform("strength", 3, 6, unit="rad"),
    ],
)
def swirl(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Twist the image about a point, decreasing with distance."""
    centre_B2 = np.stack([args["centre_x"], args["centre_y"]], axis=1)
    return warp.swirl(canvas_BSSC, centre_B2, args["radius"], args["strength"])
