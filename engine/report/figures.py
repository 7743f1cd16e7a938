"""Confusion matrices, heat tables and curves. Colours of the former are transparent, for light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from substyle.engine.report.data import Kind, Results, dig, heads, ordered, show, show_interval, verbatim
from substyle.engine.report.findings import interval_key

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


def confusion(confusion: object, *, worst: int = 8) -> Matrix | None:
    """Prepare ``{"labels", "counts"}`` (rows true, columns predicted); None if empty."""
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


@dataclass(frozen=True)
class Cell:
    """A cell of a heat table: text, small text below it, and heat in [0, 1] (None: no colour)."""

    text: str
    small: str
    heat: float | None


@dataclass(frozen=True)
class HeatTable:
    """A table of transformations (rows, grouped by coarse class) and backbones (columns), coloured by value.

    Attributes:
        columns: (backbone, whether it is a control).
        groups: (coarse class, rows of (transformation, cells)).
        footer: (heading, cells) below all groups.
    """

    columns: tuple[tuple[str, bool], ...]
    groups: tuple[tuple[str, tuple[tuple[str, tuple[Cell, ...]], ...]], ...]
    footer: tuple[tuple[str, tuple[Cell, ...]], ...] = ()


def heat_table(
    results: Results,
    value: Callable[[Any, str], Any],
    *,
    small: Callable[[Any, str], str] = lambda backbone, t: "",
    kind: Kind = "share",
    keep: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> HeatTable | None:
    """Create a heat table; None if there are no numbers.

    Args:
        results: the results.
        value: number for (backbone's results, transformation).
        small: small text below the number, such as its interval, with the same arguments.
        kind: format of the numbers.
        keep: selects transformations.
    """
    suite = [row["name"] for row in results["transformations"]]
    known = {n: [value(results["backbones"][n], t) is not None for t in suite] for n in ordered(results)}
    names = [name for name, found in known.items() if any(found)]
    groups: dict[str, list[tuple[str, tuple[Cell, ...]]]] = {}
    for row in results["transformations"]:
        cells = []
        for name in names:
            backbone = results["backbones"][name]
            number = value(backbone, row["name"])
            heat = None if number is None else min(max(number, 0.0), 1.0)
            cells.append(Cell(show(number, kind), small(backbone, row["name"]), heat))
        if keep(row) and any(cell.heat is not None for cell in cells):
            groups.setdefault(row["coarse"], []).append((row["name"], tuple(cells)))
    if not groups:
        return None
    columns = tuple((name, bool(dig(results, "backbones", name, "control"))) for name in names)
    return HeatTable(columns, tuple((coarse, tuple(rows)) for coarse, rows in groups.items()))


def _footer(
    results: Results, table: HeatTable, task: str, head: str, wanted: Sequence[tuple[str, str, Kind]]
) -> HeatTable:
    """Add rows for overall scores that any backbone has, given as (score, heading, kind), and for chance.

    Backbones whose probe has not converged are marked †.
    """
    footer = []
    for key, heading, kind in wanted:
        every = [dig(results, "backbones", name, task, head) for name, _ in table.columns]
        if all(dig(scores, key) is None for scores in every):
            continue
        cells = []
        for scores in every:
            interval = dig(scores, interval_key(scores, task, key))
            cells.append(Cell(show(dig(scores, key), kind), show_interval(interval, kind), None))
        footer.append((heading, tuple(cells)))
    chance = dig(results, "chance", "coarse" if task == "coarse_rotation" else task)
    if chance is not None:
        footer.append(("Chance", (Cell(show(chance), "", None),) * len(table.columns)))
    late = [dig(results, "backbones", name, task, head, "converged") is False for name, _ in table.columns]
    columns = tuple((name + " †" * mark, control) for (name, control), mark in zip(table.columns, late, strict=True))
    return HeatTable(columns, table.groups, tuple(footer))


def _accuracies(
    results: Results, task: str, wanted: Sequence[tuple[str, str, Kind]], *, role: str = ""
) -> list[tuple[str, HeatTable]]:
    """(head, accuracy by transformation) for all heads that have any.

    Args:
        wanted: overall scores (score, heading, kind).
        role: leave out transformations of other roles.
    """
    tables = []
    for head in heads(results):
        path = (task, head, "by_transformation")

        def value(backbone: object, t: str, path: tuple[str, ...] = path) -> Any:  # noqa: ANN401 (JSON)
            found = dig(backbone, *path, t)
            return dig(found, "accuracy") if isinstance(found, dict) else found

        def small(backbone: object, t: str, path: tuple[str, ...] = path) -> str:
            return show_interval(dig(backbone, *path, t, "ci95"))

        table = heat_table(results, value, small=small, keep=lambda row: role in ("", row["role"]))
        if table is not None:
            tables.append((head, _footer(results, table, task, head, wanted)))
    return tables


def style_tables(results: Results) -> list[tuple[str, HeatTable]]:
    """Style accuracy by transformation."""
    return _accuracies(results, "fine", [("accuracy", "All", "share")])


def new_style_tables(results: Results, role: str) -> list[tuple[str, HeatTable]]:
    """Coarse accuracy by transformation with a role, ``held_out`` or ``train``."""
    wanted: list[tuple[str, str, Kind]] = [("seen", "All seen", "share")]
    if role == "held_out":
        wanted += [("held_out", "All held out", "share"), ("gap", "Gap", "points")]
    return _accuracies(results, "coarse", wanted, role=role)


def rotation_tables(results: Results) -> list[tuple[str, HeatTable]]:
    """Coarse accuracy by transformation, each held out in turn."""
    return _accuracies(results, "coarse_rotation", [("accuracy", "All", "share"), ("styles", "All styles", "share")])


def substance_tables(results: Results) -> list[tuple[str, HeatTable]]:
    """Class accuracy by transformation."""
    return _accuracies(
        results, "semantic", [("clean", "Unchanged", "share"), ("obfuscated", "All transformed", "share")]
    )


def geometry_tables(results: Results) -> list[tuple[str, str, HeatTable]]:
    """(title, explanation, table) of sensitivity, equivariance and steerability."""
    wanted = (
        (
            "sensitivity",
            "Sensitivity",
            "1 − cosine between a variant and its unchanged photograph, after subtracting the mean of the unchanged "
            "photographs from both, averaged over photographs. 0: the embedding does not move; 1: the variant is as "
            "dissimilar to its photograph as an unrelated one.",
        ),
        (
            "equivariance",
            "Equivariance",
            "Mean cosine between the displacement of one photograph and the mean of the displacements of all others, "
            "each at unit length. 1: the transformation moves all embeddings in the same direction; 0: in unrelated "
            "directions.",
        ),
        (
            "steerability",
            "Steerability",
            "R² on test photographs of a ridge regression from the unchanged embedding to the variant's; 0 is no "
            "better than the mean. Small: R² of the unchanged embedding itself.",
        ),
    )
    tables = []
    for key, title, text in wanted:
        table = _geometry(results, key)
        if table is not None:
            tables.append((title, text, table))
    return tables


def _geometry(results: Results, key: str) -> HeatTable | None:
    def small(backbone: object, t: str) -> str:
        if key == "steerability":
            unchanged = dig(backbone, "steerability_unchanged", t)
            return "" if unchanged is None else show(unchanged, "number")
        return show_interval(dig(backbone, f"{key}_ci95", t), "number")

    return heat_table(results, lambda backbone, t: dig(backbone, key, t), small=small, kind="number")


@dataclass(frozen=True)
class Curve:
    """An accuracy by layer of a network or by severity of a transformation.

    Attributes:
        label: name of the curve.
        colour: ``full`` or ``open``, colours of the page, or any other.
        dashed: whether the line is.
        points: (layer or severity, value, low, high), ascending.
        unconverged: layers whose probe has not converged.
    """

    label: str
    colour: str
    dashed: bool
    points: tuple[tuple[int, float, float | None, float | None], ...]
    unconverged: tuple[int, ...] = ()


@dataclass(frozen=True)
class CurvePlot:
    """Curves from level ``first`` to ``last``, with ``ticks`` at some levels, and a sentence on them."""

    name: str
    first: int
    last: int
    ticks: tuple[int, ...]
    curves: tuple[Curve, ...]
    summary: str


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


def draw_curves(plots: Sequence[CurvePlot], level: str, most: int = 3) -> Any:  # noqa: ANN401 (matplotlib ships no types)
    """Draw plots, at most ``most`` in a row. ``level`` is what the horizontal axes show."""
    figure, axes = panels(len(plots), most, 7.8 / most, 2.3, below=0.4, sharey=True)
    legend: dict[str, Any] = {}
    for axis, plot in zip(axes, plots, strict=True):
        for curve in plot.curves:
            x, values, lows, highs = zip(*curve.points, strict=True)
            colour = {"full": FULL, "open": OPEN}.get(curve.colour, curve.colour)
            line = {"color": colour, "ls": "--" if curve.dashed else "-", "lw": 1.2, "marker": "o", "ms": 2.5}
            (drawn,) = axis.plot(x, [100 * value for value in values], **line)
            legend.setdefault(verbatim(curve.label), drawn)
            for at, low, high in zip(x, lows, highs, strict=True):
                if low is not None:
                    axis.plot([at, at], [100 * low, 100 * high], color=colour, lw=0.6)
        axis.set(ylim=(0, 100), xlim=(plot.first - 0.3, plot.last + 0.3), xticks=plot.ticks)
        axis.set_title(verbatim(plot.name), size=7)
        axis.set_xlabel(level, size=7)
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    figure.supylabel("accuracy, %", fontsize=8)
    return figure
