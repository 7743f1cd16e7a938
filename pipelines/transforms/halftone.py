"""Kind *halftone*: images printed in dots or lines of ink on white paper, or with inverted bands."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import halftone
from substyle.pipelines.transforms.base import Arrays, Choice, Node, Uniform, beside, dali, kernel

Keys = NDArray[np.uint64]


def _radians(args: Arrays, side: int) -> Arrays:
    return {**args, "angle": np.asarray(np.radians(args["angle"]), dtype=np.float32)}


@kernel(
    "dot_halftone",
    kind="halftone",
    role="train",
    parameters=[Uniform("cell", 4, 8, unit="px", count=3), Uniform("angle", 0, 90, unit="degrees", count=3)],
    prepare=_radians,
)
def dot_halftone(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Cyan, magenta and yellow ink in round dots, each on its own lattice (pitch and angle)."""
    return halftone.dots(canvas_BSSC, args["cell"], args["angle"])


@kernel(
    "line_halftone",
    kind="halftone",
    role="train",
    parameters=[Uniform("pitch", 4, 8, unit="px"), Uniform("angle", 0, 180, unit="degrees")],
    prepare=_radians,
)
def line_halftone(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Parallel lines of ink whose width follows the tone of each channel."""
    return halftone.lines(canvas_BSSC, args["pitch"], args["angle"])


def band_masks(args: Arrays, side: int) -> Arrays:
    """``rows`` (B, S, 1, 1) and ``columns`` (B, 1, S, 1) uint8: one has 255 in every other band, else 0."""
    band_B1, phase_B1 = args["band"][:, None], args["phase"][:, None]
    inverted_BS = np.floor((np.arange(side) + 0.5) / band_B1 + 2 * phase_B1) % 2 == 1
    vertical_B1 = args["vertical"][:, None] == 1
    rows_BS = np.where(inverted_BS & ~vertical_B1, 255, 0).astype(np.uint8)
    columns_BS = np.where(inverted_BS & vertical_B1, 255, 0).astype(np.uint8)
    return {"rows": rows_BS[:, :, None, None], "columns": columns_BS[:, None, :, None]}


@dali(
    "inverted_lines",
    kind="halftone",
    role="held_out",
    parameters=[Uniform("band", 8, 20, unit="px"), Uniform("phase", 0, 1), Choice("vertical", (0, 1))],
    prepare=band_masks,
)
def inverted_lines(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Invert every other band of rows or columns: 255 - x, which is x ^ 255."""
    del side
    return canvas ^ beside(canvas, args["rows"]) ^ beside(canvas, args["columns"])
