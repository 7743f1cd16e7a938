"""How far variants move, and what that says about the accuracy that they lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from substyle.engine.report.data import Column, ComparedScore, Table, minus, scored, show, words
from substyle.engine.report.figures import FULL, tip
from substyle.engine.report.section import Block, Data, Panel, Plots, Section, Text
from substyle.engine.results.model import BackboneResults, Estimate, Model, Numbers, ResultsDocument
from substyle.engine.results.statistics import FEWEST_CORRELATED, correlation_interval

DEFAULT = "sensitivity"
MEASURES = (DEFAULT, "radius", "csls")
_TITLES = {DEFAULT: "Sensitivity", "radius": "Radius", "csls": "CSLS"}


class Measure(Model):
    """A measure of how far variants move: its mean, and its rank correlation with the loss over transformations.

    ``difference`` is the correlation minus that of sensitivity.
    """

    mean: Estimate | None = None
    spearman: Estimate | None = None
    difference: Estimate | None = None
    by_transformation: Numbers | None = None


class Movement(Model):
    """`Measure` by name, and the class accuracy that the linear probe loses, by transformation and their mean.

    ``units`` are transformations of which severities of one, and styles of one generator, count as one.
    """

    measures: dict[str, Measure | None] | None = None
    loss: Estimate | None = None
    by_transformation: Numbers | None = None
    images: int | None = None
    transformations: int | None = None
    units: int | None = None
    resample_by: str | None = None


def _each(found: Movement) -> Iterator[tuple[str, Measure]]:
    for name in MEASURES:
        measure = (found.measures or {}).get(name)
        if measure is not None and measure.spearman is not None:
            yield name, measure


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """The correlation of each measure with the loss."""
    found: Movement = backbone.entry("movement") or Movement()
    for name, measure in _each(found):
        heading = f"{_TITLES[name]} and loss, rho"
        assert measure.spearman is not None
        yield ComparedScore(f"movement_{name}", heading, measure.spearman, images=found.images)


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without correlations."""
    found: Mapping[str, Movement] = results.entries("movement")
    known = {name: own for name, own in found.items() if any(True for _ in _each(own))}
    if not known:
        return
    first = next(iter(known.values()))
    text = "Which measure of movement says how much class accuracy a transformation costs? Rank correlation over "
    text += f"{first.units} transformations, on {show(first.images, 'count')} test photographs, of three "
    text += "measures with the accuracy that the linear class probe loses: sensitivity; the radius of the smallest "
    text += "ball around a photograph and its variants, in half distances of photographs (root mean square); and the "
    text += f"cosine distance corrected for hubness (CSLS). {_verdict(known)}"
    note = f"95% intervals of correlations cover those over {results.drawn(first.resample_by)} and over "
    note += "transformations, of which severities of one, and styles of one generator, count as one; those of "
    note += "differences are from resamples of both. With few photographs noise in the loss pulls correlations "
    note += "towards 0."
    blocks: list[Block] = [Text(text), Data(correlations(known)), plots(known)]
    if (table := over_backbones(results, known)).rows:
        blocks += [Text("The same over trained backbones, of their means, as in claim C6."), Data(table)]
    blocks += [Data(by_transformation(known), hidden=True), Text(note, note=True)]
    yield Section("movement", "Movement", "Movement: what predicts the loss of accuracy?", tuple(blocks))


def _verdict(found: Mapping[str, Movement]) -> str:
    """How the other measures compare with sensitivity."""
    parts = []
    for name in MEASURES[1:]:
        own = [dict(_each(each)) for each in found.values()]
        differences = [measures[name].difference for measures in own if name in measures]
        ends = [each.interval for each in differences if each is not None and each.interval is not None]
        better, worse = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
        parts.append(f"{_TITLES[name]} predicts better than sensitivity for {better} of {len(differences)} backbones")
        parts[-1] += f" and worse for {worse}"
    return "; ".join(parts) + "."


def correlations(found: Mapping[str, Movement]) -> Table:
    """Each measure of each backbone."""
    columns = (
        *words("backbone", "measure"),
        Column("mean", "Mean", "number", interval=True),
        Column("spearman", "Spearman's rho", "number", interval=True),
        Column("difference", "Minus that of sensitivity", "number", interval=True),
    )
    rows = [
        (name, _TITLES[key], *(scored(own, column) for column in ("mean", "spearman", "difference")))
        for name, each in found.items()
        for key, own in _each(each)
    ]
    return Table("movement", "Rank correlation with the loss of class accuracy.", columns, tuple(rows))


def over_backbones(results: ResultsDocument, found: Mapping[str, Movement]) -> Table:
    """Correlation over trained backbones of each measure with the loss under transformations and each shift."""
    from scipy.stats import spearmanr  # slow to import

    columns = (
        *words("loss", "measure"),
        Column("backbones", "Backbones", "count"),
        Column("spearman", "Spearman's rho", "number", interval=True),
    )
    networks = [name for name in results.networks() if name in found]
    losses = {"transformations": {name: found[name].loss for name in networks}}
    for row in results.robustness or []:
        shifted = {name: own.loss for name, own in (row.backbones or {}).items() if own is not None}
        losses[row.shift or "all shifts"] = {name: shifted.get(name) for name in networks}
    rows = []
    for loss, of_backbone in losses.items():
        for key in MEASURES:
            known = {name: dict(_each(found[name])).get(key) for name in of_backbone}
            pairs = [
                (own.mean.value, lost.value)
                for name, lost in of_backbone.items()
                if lost is not None and (own := known[name]) is not None and own.mean is not None
            ]
            sides = [np.array(side, np.float64) for side in zip(*pairs, strict=True)]
            if len(pairs) < FEWEST_CORRELATED or any(np.ptp(side) == 0 for side in sides):
                continue
            rho = float(spearmanr(*sides).statistic)
            rows.append((loss, _TITLES[key], len(pairs), (rho, *correlation_interval(rho, len(pairs)))))
    return Table("movement_over_backbones", "Rank correlation over trained backbones.", columns, tuple(rows))


def by_transformation(found: Mapping[str, Movement]) -> Table:
    """Loss and measures of each transformation."""
    columns = (
        *words("backbone", "transformation"),
        Column("loss", "Class accuracy lost", "points"),
        *(Column(name, _TITLES[name], "number") for name in MEASURES),
    )
    rows = []
    for name, each in found.items():
        moved = [((each.measures or {}).get(key) or Measure()).by_transformation or {} for key in MEASURES]
        rows += [(name, t, loss, *(own.get(t) for own in moved)) for t, loss in (each.by_transformation or {}).items()]
    return Table("movement_by_transformation", "Movement and loss by transformation.", columns, tuple(rows))


def plots(found: Mapping[str, Movement]) -> Plots:
    """Loss against sensitivity, by backbone."""
    panels = []
    for name, own in found.items():
        measure = dict(_each(own)).get(DEFAULT)
        if measure is not None:
            spoken = f"{name}: class accuracy lost against sensitivity, rho {show(measure.spearman, 'number')}"
            panels.append(Panel(name, partial(_draw, measure=measure, found=own), spoken=spoken))
    return Plots("movement", tuple(panels), tables=("movement_by_transformation",))


def _draw(axis: Any, measure: Measure, found: Movement) -> None:  # noqa: ANN401 (matplotlib ships no types)
    for t, moved in (measure.by_transformation or {}).items():
        lost = (found.by_transformation or {}).get(t)
        if lost is None or moved is None:
            continue
        (dot,) = axis.plot(moved, 100 * lost, "o", color=FULL, markersize=3, markeredgewidth=0)
        tip(dot, minus(f"{t}: sensitivity {moved:.2f}, {100 * lost:.1f} points lost"), t)
    axis.grid()
    axis.set(xlabel="sensitivity", ylabel="points of accuracy lost")
