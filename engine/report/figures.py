"""The pieces of figures that need computing: pixels of confusion matrices.

Everything else is drawn by the template as SVG. Heat is painted in one colour whose opacity is the value, so that the
same picture serves light and dark pages.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from substyle.engine.report.results import dig

HEAT = (31, 111, 181)


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix ready to draw.

    Attributes:
        labels: of rows (truth) and columns (prediction).
        png: its pixels as a data URI.
        worst: the largest confusions: (truth, prediction, share of the truth's row).
        side: width and height in pixels.
        margin: pixels that the labels need.
    """

    labels: tuple[str, ...]
    png: str
    worst: tuple[tuple[str, str, float], ...]
    side: float
    margin: float


def confusion(confusion: object, *, worst: int = 8) -> Matrix | None:
    """Prepare ``{"labels", "counts"}`` (rows true, columns predicted); None when there is nothing to show."""
    labels, counts = dig(confusion, "labels"), dig(confusion, "counts")
    if not labels or not counts:
        return None
    counts_CC = np.asarray(counts, dtype=np.float64)
    if counts_CC.shape != (len(labels), len(labels)):
        return None
    totals_C = counts_CC.sum(axis=1, keepdims=True)
    share_CC = np.divide(counts_CC, totals_C, out=np.zeros_like(counts_CC), where=totals_C > 0)
    off = share_CC * (1 - np.eye(len(labels)))
    order = np.argsort(-off, axis=None, kind="stable")[:worst]
    pairs = [np.unravel_index(i, off.shape) for i in order]
    names = tuple(map(str, labels))
    return Matrix(
        labels=names,
        png=heat_png(share_CC),
        worst=tuple((names[i], names[j], float(off[i, j])) for i, j in pairs if off[i, j] > 0),
        side=len(names) * (30.0 if len(names) <= 12 else 17.5),
        margin=min(14 + 5.6 * max(map(len, names)), 220.0),
    )


def heat_png(share_RC: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """A data URI of one pixel for each value in [0, 1]: one colour, opacity rising with the square root."""
    from PIL import Image

    pixels = np.empty((*share_RC.shape, 4), dtype=np.uint8)
    pixels[..., :3] = HEAT
    # the square root keeps confusions of a few per cent visible beside a full diagonal
    pixels[..., 3] = np.rint(255 * np.sqrt(np.clip(share_RC, 0.0, 1.0)))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
