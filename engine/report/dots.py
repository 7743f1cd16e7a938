"""Dot plots: scores of all backbones for one question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from substyle.engine.report.data import head_name, scored
from substyle.engine.report.figures import FULL, MUTED, OPEN
from substyle.engine.results.model import ResultsDocument


@dataclass(frozen=True)
class Dot:
    """A value in [0, 1] with its interval; ``shape`` is ``full`` or ``open``."""

    value: float
    low: float | None
    high: float | None
    shape: str
    label: str


@dataclass(frozen=True)
class DotRow:
    """Dots of one backbone."""

    name: str
    control: bool
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class DotPlot:
    """Dots of all backbones for one question, with chance and a legend of shapes."""

    macro: ClassVar = "dot_plot"
    title: str
    rows: tuple[DotRow, ...]
    chance: float | None
    key: tuple[tuple[str, str], ...]


def _plot(
    results: ResultsDocument, title: str, task: str, wanted: Sequence[tuple[str, str, str, str]]
) -> DotPlot | None:
    """Create a dot plot; ``wanted`` is (head, score, shape, label) of each dot in a row."""
    rows = []
    for name, backbone in results.ordered().items():
        scores = [(scored(backbone.probe(task, head), key), shape, label) for head, key, shape, label in wanted]
        dots = tuple(Dot(*score, shape, label) for score, shape, label in scores if score)
        if dots:
            rows.append(DotRow(name, bool(backbone.control), dots))
    if not rows:
        return None
    used = {dot.label for row in rows for dot in row.dots}
    shapes = tuple((shape, label) for _, _, shape, label in wanted if label in used)
    return DotPlot(title, tuple(rows), results.chance_of(task), shapes)


def dot_plots(results: ResultsDocument) -> list[DotPlot]:
    """Dot plots of style, new styles and substance."""
    tried, first = results.heads(), results.first_head()
    each = zip(tried, ("full", "open"), strict=False)
    styles = [(head, "accuracy", shape, f"{head_name(head)} probe") for head, shape in each]
    new = [(first, "seen", "full", "seen in training"), (first, "held_out", "open", "held out")]
    classes = [(first, "clean", "full", "unchanged photographs"), (first, "obfuscated", "open", "transformed")]
    plots = (
        _plot(results, "Style: which transformation?", "fine", styles),
        _plot(results, "New styles: which coarse class?", "coarse", new),
        _plot(results, "Substance: which class?", "semantic", classes),
    )
    return [plot for plot in plots if plot is not None]


def draw_dots(plots: Sequence[DotPlot]) -> Any:  # noqa: ANN401 (matplotlib ships no types)
    """Draw the plots side by side."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation

    names = list(dict.fromkeys(row.name for plot in plots for row in plot.rows))
    size = (2.4 * len(plots) + 0.3 + 0.065 * max(map(len, names)), 0.26 * len(names) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(plots), sharey=True, squeeze=False)[0]
    for plot, axis in zip(plots, axes, strict=True):
        for row in plot.rows:
            y = names.index(row.name)
            for dot in row.dots:
                mark = _mark(dot.shape)
                if dot.low is not None and dot.high is not None:
                    ends = [100 * dot.low, 100 * dot.high]
                    axis.plot(ends, [y, y], color=mark["mec"], lw=1.2, solid_capstyle="butt")
                axis.plot(100 * dot.value, y, zorder=3, **mark)
        if plot.chance is not None:
            axis.axvline(100 * plot.chance, color=MUTED, lw=0.8, ls=(0, (2, 2)))
        axis.set(xlim=(0, 100), title=plot.title, xlabel="accuracy, %")
        marks = [Line2D([], [], label=label, **_mark(shape)) for shape, label in plot.key]
        axis.legend(
            handles=marks,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            bbox_transform=axis.transAxes + ScaledTranslation(0, -0.36, figure.dpi_scale_trans),
            ncols=2,
            columnspacing=0.8,
            handletextpad=0.1,
            frameon=False,
            fontsize=7,
        )
        axis.title.set_size(8)
        axis.grid(axis="x", color="#e3e6ea", lw=0.6)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), list(names))
    axes[0].invert_yaxis()
    return figure


def _mark(shape: str) -> dict[str, Any]:
    """Style of a dot."""
    colour = FULL if shape == "full" else OPEN
    face = colour if shape == "full" else "white"
    return {"ls": "", "marker": "o", "ms": 4.5, "mec": colour, "mfc": face, "mew": 1.1}
