"""Confusion matrices and curves. Colours of the former are transparent, for light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from substyle.engine.results.model import Confusion
from substyle.kernels.files import replacing

HEAT = (31, 111, 181)
INK, MUTED, FULL, OPEN = "#1b1f24", "#7a828c", "#1f6fb5", "#c8561b"


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix to draw.

    Attributes:
        labels: labels of rows (truth) and columns (prediction).
        png: pixels as a data URI.
        worst: most frequent confusions: (truth, prediction, fraction of the truth's row).
        side: width and height in pixels.
        margin: width of the labels in pixels.
        cells: text in each cell, or none.
    """

    labels: tuple[str, ...]
    png: str
    worst: tuple[tuple[str, str, float], ...]
    side: float
    margin: float
    cells: tuple[tuple[str, ...], ...] = ()


def confusion(confusion: Confusion | None, *, worst: int = 8) -> Matrix | None:
    """Prepare a confusion matrix; None if there is none, or it is empty."""
    if confusion is None or not confusion.labels:
        return None
    labels, counts_CC = confusion.labels, np.asarray(confusion.counts, dtype=np.float64)
    totals_C = counts_CC.sum(axis=1, keepdims=True)
    share_CC = np.divide(counts_CC, totals_C, out=np.zeros_like(counts_CC), where=totals_C > 0)
    off = share_CC * (1 - np.eye(len(labels)))
    order = np.argsort(-off, axis=None, kind="stable")[:worst]
    pairs = [np.unravel_index(i, off.shape) for i in order]
    names = tuple(labels)
    return Matrix(
        labels=names,
        png=heat_png(share_CC),
        worst=tuple((names[i], names[j], float(off[i, j])) for i, j in pairs if off[i, j] > 0),
        side=len(names) * (30.0 if len(names) <= 12 else 17.5),
        margin=min(14 + 5.6 * max(map(len, names)), 220.0),
    )


def heat_png(share_RC: np.ndarray[Any, np.dtype[np.float64]], *, linear: bool = False) -> str:
    """Draw values in [0, 1] as pixels of one colour, opacity being the value or its square root. Returns a data URI."""
    from PIL import Image

    pixels = np.empty((*share_RC.shape, 4), dtype=np.uint8)
    pixels[..., :3] = HEAT
    # the square root makes confusions of a few per cent visible
    pixels[..., 3] = np.rint(255 * np.clip(share_RC, 0.0, 1.0) ** (1.0 if linear else 0.5))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def panels(
    count: int,
    most: int,
    width: float,
    height: float,
    *,
    below: float = 0.0,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Any, Any]:
    """A figure of axes of the given size in inches, at most ``most`` in a row. Returns it, and ``count`` axes.

    Args:
        below: inches for a legend.
    """
    from matplotlib.figure import Figure

    across = min(count, most)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down + below), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=sharex, sharey=sharey).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def save_figures(drawings: Mapping[str, Callable[[], Any]], folder: Path) -> list[Path]:
    """Draw figures and write each as PDF and PNG of its name. Returns the files."""
    import matplotlib

    style = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "pdf.fonttype": 42,
        "text.parse_math": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style):
        return [path for name, draw in drawings.items() for path in _save(draw(), folder / name)]


_DPI = 200
_LONGEST_PX = 1 << 15  # matplotlib refuses 2^16; a row for each of many backbones is that high
_MARGIN_IN = 0.1


def _save(figure: Any, stem: Path) -> list[Path]:  # noqa: ANN401 (matplotlib ships no types)
    """Save a figure as PDF and PNG, cut to what is drawn; layout, which takes most of the time, is computed once."""
    figure.set_dpi(_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    paths = []
    cut = figure.get_tightbbox().padded(_MARGIN_IN)
    dpi = min(_DPI, _LONGEST_PX / max(cut.size))
    # no date, so that equal results give equal files
    for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        paths.append(stem.with_name(f"{stem.name}.{ending}"))
        with replacing(paths[-1]) as file:
            figure.savefig(file, format=ending, dpi=dpi, bbox_inches=cut, metadata=metadata)
    return paths
