"""Coarse class halftone: pictures as a press prints them, in dots or in lines of ink on white paper."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import screen
from substyle.pipelines.transforms.base import Arrays, Uniform, kernel

Keys = NDArray[np.uint64]


def _radians(args: Arrays, side: int) -> Arrays:
    return {**args, "angle": np.asarray(np.radians(args["angle"]), dtype=np.float32)}


@kernel(
    "dot_halftone",
    coarse="halftone",
    role="train",
    parameters=[Uniform("cell", 4, 8, unit="px", count=3), Uniform("angle", 0, 90, unit="degrees", count=3)],
    prepare=_radians,
)
def dot_halftone(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Cyan, magenta and yellow ink in round dots, each colour on a lattice of its own pitch and angle."""
    return screen.dots(canvas_BSSC, args["cell"], args["angle"])


@kernel(
    "line_halftone",
    coarse="halftone",
    role="train",
    parameters=[Uniform("pitch", 4, 8, unit="px"), Uniform("angle", 0, 180, unit="degrees")],
    prepare=_radians,
)
def line_halftone(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Parallel lines of ink whose width follows the tone of each channel."""
    return screen.lines(canvas_BSSC, args["pitch"], args["angle"])
