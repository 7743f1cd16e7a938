"""How well the parameters of transformations are read from embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from substyle.engine.report.data import (
    Column,
    ComparedScore,
    Table,
    minus,
    parameter_name,
    scored,
    show,
    show_interval,
    unit_name,
    words,
)
from substyle.engine.report.figures import FULL, GRID, tip
from substyle.engine.report.heat_tables import Cell, HeatTable
from substyle.engine.report.section import Data, Heat, Panel, Plots, Section, Text
from substyle.engine.results.model import BackboneResults, Estimate, Finite, Model, ResultsDocument

_PANELS = 6


class HowMuch(Model):
    """How well a parameter is predicted: R² and mean absolute error in its unit, on variants of test photographs.

    ``points`` are true and predicted values of some of them. Angles with a ``period`` are predicted as points of the
    unit circle, whose R² this is.
    """

    r2: Estimate | None = None
    error: Estimate | None = None
    unit: str | None = None
    period: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None
    penalty: Finite | None = None
    edge: bool | None = None
    images: int | None = None
    points: list[list[Finite]] | None = None

    @property
    def explained(self) -> float:
        """R²; 0 without."""
        return 0.0 if self.r2 is None else self.r2.value


class ByTransformation(Model):
    """`HowMuch` by transformation and parameter."""

    by_transformation: dict[str, dict[str, HowMuch | None] | None] | None = None
    resample_by: str | None = None


def _each(found: ByTransformation) -> Iterator[tuple[str, str, HowMuch]]:
    for transformation, own in (found.by_transformation or {}).items():
        for parameter, score in (own or {}).items():
            if score is not None and score.r2 is not None:
                yield transformation, parameter, score


def _mean(found: ByTransformation) -> float | None:
    """Mean R² over all parameters, of which one that is worse than a constant counts as 0."""
    values = [max(score.explained, 0.0) for _, _, score in _each(found)]
    return sum(values) / len(values) if values else None


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Mean R² of all parameters."""
    found: ByTransformation = backbone.entry("parameters") or ByTransformation()
    if (mean := _mean(found)) is not None:
        yield ComparedScore("parameters", "Parameters, mean R²", Estimate(value=mean))


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without parameters."""
    found: Mapping[str, ByTransformation] = results.entries("parameters")
    known = {name: own for name, own in found.items() if _mean(own) is not None}
    if not known:
        return
    ranked = sorted(known, key=lambda name: -(_mean(known[name]) or 0.0))
    text = "Each variant is made with parameters that were drawn at random: how much blur, which angle, which quality. "
    text += "Ridge regression predicts them from the embedding, and R² is the share of their variance that it explains "
    text += "on test photographs: 100 is exact, 0 no better than the mean. "
    means = [f"{name} {show(_mean(known[name]))}" for name in ranked]
    text += f"Mean over all parameters, those below 0 counting as 0: {', '.join(means)}."
    note = (
        "The error is the mean absolute error in the unit of the parameter. Angles that go full circle are predicted "
    )
    by = next(iter(known.values())).resample_by
    note += f"as points of it. In small type: 95% intervals over {results.drawn(by)}."
    if edges := sum(bool(score.edge) for own in known.values() for *_, score in _each(own)):
        note += f" {edges} regression{'s' * (edges > 1)} selected the smallest or the largest penalty."
    table = parameters(known)
    yield Section(
        "parameters",
        "Parameters",
        "Parameters: how much was applied?",
        (
            Text(text),
            Heat((("R²", "", heat(results, known)),), "R² by transformation, parameter and backbone"),
            plots(ranked[0], known[ranked[0]]),
            Data(table, hidden=True),
            Text(note, note=True),
        ),
    )


def parameters(found: Mapping[str, ByTransformation]) -> Table:
    """R² and error of each parameter."""
    columns = (
        *words("backbone", "transformation", "parameter", "unit"),
        Column("r2", "R²", interval=True),
        Column("error", "Mean absolute error", "number", interval=True),
        *(Column("low", "Lowest", "number"), Column("high", "Highest", "number")),
    )
    rows = [
        (name, *where, score.unit or "", scored(score, "r2"), scored(score, "error"), score.low, score.high)
        for name, own in found.items()
        for *where, score in _each(own)
    ]
    return Table("parameters", "How well parameters are predicted.", columns, tuple(rows))


def heat(results: ResultsDocument, found: Mapping[str, ByTransformation]) -> HeatTable:
    """R² by transformation and parameter (rows) and backbone (columns)."""
    known = {name: {(t, p): score for t, p, score in _each(own)} for name, own in found.items()}
    places = dict.fromkeys(place for own in known.values() for place in own)
    rows = []
    for place in places:
        unit = next((own[place].unit for own in known.values() if place in own), "")
        title = parameter_name(place[1]) + (f" ({unit_name(unit)})" if unit else "")
        rows.append((place[0], title, [_cell(own.get(place)) for own in known.values()]))
    footer = ("Mean", tuple(Cell(show(mean := _mean(own)), "", mean) for own in found.values()))
    return replace(HeatTable.of(results, known, rows), footer=(footer,), headings=("Transformation", "Parameter"))


def _cell(score: HowMuch | None) -> Cell:
    if score is None or score.r2 is None:
        return Cell(show(None), "", None)
    return Cell(show(score.r2), show_interval(score.r2.interval), min(max(score.r2.value, 0.0), 1.0))


def plots(name: str, found: ByTransformation) -> Plots:
    """Predicted against true values of the parameters that a backbone predicts best."""
    best = sorted(_each(found), key=lambda each: -each[2].explained)[:_PANELS]
    panels = []
    for transformation, parameter, score in best:
        title = f"{transformation}: {parameter_name(parameter)}"
        spoken = f"{title}, predicted against true values, R² {show(score.r2)}"
        panels.append(Panel(title, partial(_draw, score=score), name, spoken))
    return Plots("parameters", tuple(panels), tables=("parameters",))


def _draw(axis: Any, score: HowMuch) -> None:  # noqa: ANN401 (matplotlib ships no types)
    points = score.points or []
    low, high = (score.low or 0.0), (score.high or 0.0)
    axis.plot([low, high], [low, high], color=GRID, zorder=0)
    for true, predicted in points:
        (dot,) = axis.plot(true, predicted, "o", color=FULL, markersize=2.5, alpha=0.6, markeredgewidth=0)
        tip(dot, minus(f"true {true:.3g}, predicted {predicted:.3g}"))
    axis.grid()
    axis.set(xlabel=f"true, {unit_name(score.unit)}" if score.unit else "true", ylabel="predicted")
