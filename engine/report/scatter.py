"""Scatter plots of backbones or probes on two scores, with intervals and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from substyle.engine.report.data import Scored, show
from substyle.engine.report.figures import FULL, OPEN, PAPER, THIRD, tip, wrapped
from substyle.engine.report.section import Panel


@dataclass(frozen=True)
class ScatterPoint:
    """A point: its numbers on both axes as (value, low, high).

    Attributes:
        kind: ``full``: filled and on top; ``open``; ``late``: not converged, grey.
        front: whether it is on the Pareto front.
    """

    label: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    kind: str
    front: bool

    @classmethod
    def of(cls, label: str, x: Scored, y: Scored, kind: str, *, front: bool = False) -> ScatterPoint:
        """A point whose unknown ends of intervals are its values."""

        def ends(value: float, low: float | None, high: float | None) -> tuple[float, float, float]:
            return value, value if low is None else low, value if high is None else high

        return cls(label, ends(*x), ends(*y), kind, front)


@dataclass(frozen=True)
class ScatterPlot:
    """Points with intervals on two axes, class and transformation accuracy if not labelled."""

    name: str
    points: tuple[ScatterPoint, ...]
    summary: str
    x_label: str = "class accuracy, %"
    y_label: str = "transformation accuracy, %"

    @property
    def front(self) -> list[ScatterPoint]:
        """Points of the Pareto front, left to right."""
        return sorted((p for p in self.points if p.front), key=lambda p: (p.x[0], -p.y[0]))


def scatter_panels(plots: Sequence[ScatterPlot]) -> tuple[Panel, ...]:
    """Panels of the plots."""
    return tuple(Panel(plot.name, partial(_draw, plot=plot), plot.summary) for plot in plots)


def _draw(axis: Any, plot: ScatterPlot) -> None:  # noqa: ANN401 (matplotlib ships no types)
    front = [(100 * p.x[0], 100 * p.y[0]) for p in plot.front]
    axis.plot([x for x, _ in front], [y for _, y in front], color=THIRD, lw=1)
    middle = sum(p.x[0] for p in plot.points) / len(plot.points)
    for point in plot.points:
        x, y = 100 * point.x[0], 100 * point.y[0]
        colour = {"full": FULL, "open": OPEN, "late": THIRD}[point.kind]
        chosen = point.kind == "full"  # on top
        axis.plot([100 * v for v in point.x[1:]], [y, y], color=colour, lw=0.6, alpha=0.4)
        axis.plot([x, x], [100 * v for v in point.y[1:]], color=colour, lw=0.6, alpha=0.4)
        (mark,) = axis.plot(x, y, "o", ms=4.5, mec=colour, mfc=colour if chosen else PAPER, zorder=3 + chosen)
        tip(mark, f"{point.label}: {show(point.x[0])}, {show(point.y[0])}")
        if point.front or chosen:
            left = point.x[0] > middle
            place: dict[str, Any] = {"xytext": (-5 if left else 5, 4), "ha": "right" if left else "left"}
            axis.annotate(wrapped(point.label), (x, y), textcoords="offset points", size=7, **place)
    axis.margins(0.1)
    axis.locator_params(nbins=5)
    axis.grid()
    axis.set(xlabel=plot.x_label, ylabel=plot.y_label)
