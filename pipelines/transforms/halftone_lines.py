"""Coarse class *halftone*, the member that DALI makes: bands of the negative."""

from __future__ import annotations

import numpy as np

from substyle.pipelines.transforms.base import Arrays, Choice, Node, Uniform, dali


def band_masks(args: Arrays, side: int) -> Arrays:
    """``rows`` (B, S, 1, 1) and ``columns`` (B, 1, S, 1) uint8: 255 in every other band of one of them, else 0."""
    band_B1, phase_B1 = args["band"][:, None], args["phase"][:, None]
    inverted_BS = np.floor((np.arange(side) + 0.5) / band_B1 + 2 * phase_B1) % 2 == 1
    vertical_B1 = args["vertical"][:, None] == 1
    rows_BS = np.where(inverted_BS & ~vertical_B1, 255, 0).astype(np.uint8)
    columns_BS = np.where(inverted_BS & vertical_B1, 255, 0).astype(np.uint8)
    return {"rows": rows_BS[:, :, None, None], "columns": columns_BS[:, None, :, None]}


@dali(
    "inverted_lines",
    coarse="halftone",
    role="held_out",
    parameters=[Uniform("band", 8, 20, unit="px"), Uniform("phase", 0, 1), Choice("vertical", (0, 1))],
    prepare=band_masks,
)
def inverted_lines(canvas: Node, args: dict[str, Node], side: int) -> Node:
    """Every other band of rows (or columns) is the negative: x becomes 255 - x, which is x ^ 255."""
    del side
    return canvas ^ args["rows"] ^ args["columns"]
