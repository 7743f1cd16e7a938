"""Accuracy by layer of a network, and by severity of a transformation: tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from substyle.engine.report.data import Column, Table, cell_of, dagger, layer_of, scored, show_scored, words
from substyle.engine.report.figures import FULL, OPEN, PAPER, THIRD, tip
from substyle.engine.report.section import Panel
from substyle.engine.results.model import PlainScores, ResultsDocument, SeverityCurve


@dataclass(frozen=True)
class Curve:
    """An accuracy by layer of a network or by severity of a transformation.

    Attributes:
        label: name of the curve.
        dashed: whether the line is.
        points: (layer or severity, value, low, high), ascending.
        unconverged: layers or severities whose probe has not converged, drawn hollow.
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


# line colours of backbones, in order; readable on light and dark pages
COLOURS = (FULL, OPEN, "#3a8f5c", "#8a5fb8", "#b8923a", "#4aa5a5", "#b5476d", THIRD)
_TASKS = ("transformation", "class")


def _probes(results: ResultsDocument, task: str) -> dict[str, PlainScores]:
    """Probes of the first head that have curves, by backbone."""
    head = results.first_head()
    found = {name: backbone.probe(task, head) for name, backbone in results.ordered().items()}
    return {name: probe for name, probe in found.items() if isinstance(probe, PlainScores) and probe.by_severity}


def _curve(probe: PlainScores | None, name: str) -> SeverityCurve | None:
    return ((probe and probe.by_severity) or {}).get(name)


def names(results: ResultsDocument) -> list[str]:
    """Transformations with a curve, in suite order."""
    probes = _probes(results, "transformation") | _probes(results, "class")
    return list(dict.fromkeys(name for probe in probes.values() for name in probe.by_severity or {}))


def severities(results: ResultsDocument) -> Table:
    """Accuracies and sensitivity at each severity."""
    every = [_probes(results, task) for task in _TASKS]
    rows = []
    for backbone, own in results.ordered().items():
        probes = [of_task.get(backbone) for of_task in every]
        for name in names(results):
            curves = [_curve(probe, name) for probe in probes]
            for at, severity in enumerate(next((curve.severities for curve in curves if curve), [])):
                values = [
                    cell_of(None if curve is None else curve.accuracy[at], converged=not (probe and probe.unconverged))
                    for curve, probe in zip(curves, probes, strict=True)
                ]
                moved = cell_of((own.sensitivity or {}).get(f"{name}@{severity}"))
                rows.append((backbone, name, severity, *values, moved))
    columns = (
        *(*words("backbone", "transformation"), Column("severity", "Severity", "count")),
        *(Column(f"{label}_accuracy", f"{label.capitalize()} accuracy", interval=True) for label in _TASKS),
        Column("sensitivity", "Sensitivity", "number", interval=True),
    )
    return Table("severities", "Accuracy and sensitivity at each severity.", columns, tuple(rows))


def halfway(results: ResultsDocument) -> Table:
    """Severity at which transformation accuracy is halfway between chance and its maximum: a column per backbone."""
    probes = _probes(results, "transformation")
    columns = (*words("transformation"), *(Column(name, name, "number", interval=True) for name in probes))
    rows = [
        (name, *(scored(_curve(probe, name), "halfway", probe=probe) for probe in probes.values()))
        for name in names(results)
    ]
    caption = "Severity at which transformation accuracy is halfway between chance and its maximum."
    return Table("halfway", caption, columns, tuple(row for row in rows if any(row[1:])))


def severity_plots(results: ResultsDocument) -> list[CurvePlot]:
    """Plots of transformations, of all backbones."""
    rows = severities(results).rows
    plots = []
    for name in names(results):
        curves = [
            Curve(
                backbone,
                COLOURS[at % len(COLOURS)],
                dashed,
                tuple((r[2], *r[column]) for r in own),
                tuple(r[2] for r in own if dagger(r[column])),
            )
            for dashed, column in ((False, 3), (True, 4))
            for at, backbone in enumerate(results.ordered())
            if (own := [r for r in rows if r[:2] == (backbone, name) and r[column]])
        ]
        if curves:
            last = max(point[0] for curve in curves for point in curve.points)
            plots.append(CurvePlot(name, 1, last, tuple(range(1, last + 1)), tuple(curves), _summary(results, name)))
    return plots


def _summary(results: ResultsDocument, name: str) -> str:
    """Which trained backbone names the transformation at the lowest severity, and whether another is clearly later.

    Probes that have not converged are left out.
    """
    probes = {b: probe for b, probe in _probes(results, "transformation").items() if b in results.real()}
    found = [(b, scored(_curve(probe, name), "halfway")) for b, probe in probes.items() if not probe.unconverged]
    known = sorted(((backbone, half) for backbone, half in found if half is not None), key=lambda pair: pair[1][0])
    if not known:
        return "No converged probe of a backbone names it clearly above chance."
    first, half = known[0]
    text = f"Halfway at severity {half[0]:.1f} ({first})"
    later = [(b, h) for b, h in known[1:] if h[1] is not None and half[2] is not None and h[1] > half[2]]
    if later:
        return f"{text}; clearly later: {', '.join(f'{b} ({h[0]:.1f})' for b, h in later)}."
    return f"{text}; no other backbone is clearly later." if len(known) > 1 else f"{text}."


def highest(curve: Curve) -> str:
    """The best layer, and the layers whose value is within its interval; only of probes that have converged."""
    known = [point for point in curve.points if point[0] not in curve.unconverged]
    if not known:
        return f"{curve.label} unknown (no probe has converged)"
    best, value, low, _ = max(known, key=lambda point: point[1])
    near = [str(layer) for layer, other, _, _ in known if layer != best and low is not None and other >= low]
    within = f"; within its interval: {', '.join(near)}" if near else ""
    within += f"; not converged: {', '.join(map(str, curve.unconverged))}" if curve.unconverged else ""
    return f"{curve.label} at layer {best} ({100 * value:.1f} %{within})"


_FEWEST_LAYERS = 3  # in a plot


def depth_plots(results: ResultsDocument) -> list[CurvePlot]:
    """Scores of the first head by depth, for networks read at several layers."""
    head = results.first_head()
    read: dict[tuple[str, int], dict[int, str]] = {}
    for name in results.ordered():
        if (placed := layer_of(results, name)) is not None:
            network, layer, last = placed
            read.setdefault((network, last), {})[layer] = name
    wanted = (
        ("transformation", FULL, False, "transformation", "accuracy"),
        ("held out", FULL, True, "kind", "held_out"),
        ("class", OPEN, False, "class", "original"),
        ("class, transformed", OPEN, True, "class", "transformed"),
    )
    plots = []
    for (network, last), names in read.items():
        curves = []
        for label, colour, dashed, task, key in wanted:
            probes = [(layer, results.probe(name, task, head)) for layer, name in sorted(names.items())]
            points = [(layer, score) for layer, probe in probes if (score := scored(probe, key)) is not None]
            late = tuple(layer for layer, score in points if dagger(score))
            if points:
                curves.append(Curve(label, colour, dashed, tuple((layer, *score) for layer, score in points), late))
        if len(names) >= _FEWEST_LAYERS and curves:
            layers = tuple(point[0] for point in curves[0].points)
            summary = f"Highest: {', '.join(map(highest, curves))}."
            plots.append(CurvePlot(network, 0, last, layers, tuple(curves), summary))
    return plots


def curve_panels(plots: Sequence[CurvePlot], level: str) -> tuple[Panel, ...]:
    """Panels of the plots; ``level`` is what their horizontal axes show."""
    return tuple(Panel(plot.name, partial(_draw, plot=plot, level=level), plot.summary) for plot in plots)


def _draw(axis: Any, plot: CurvePlot, level: str) -> None:  # noqa: ANN401 (matplotlib ships no types)
    for curve in plot.curves:
        x, values, lows, highs = np.array(curve.points, np.float64).T  # None becomes NaN
        style = {"color": curve.colour, "label": curve.label, "lw": 1.3, "ls": "--" if curve.dashed else "-"}
        (line,) = axis.plot(x, 100 * values, marker="o", ms=3, **style)
        texts = [f"{level} {at} {show_scored((value, low, high))}" for at, value, low, high in curve.points]
        tip(line, f"{curve.label}: {', '.join(texts)}")
        axis.vlines(x, 100 * lows, 100 * highs, color=curve.colour, lw=0.7)
        late = np.isin(x, curve.unconverged)
        if late.any():
            axis.plot(x[late], 100 * values[late], "o", ms=3, color=curve.colour, mfc=PAPER, zorder=3)
    axis.set(ylim=(0, 100), xlim=(plot.first - 0.3, plot.last + 0.3), xticks=plot.ticks)
    axis.set(xlabel=level, ylabel="accuracy, %")
    axis.grid(axis="y")
