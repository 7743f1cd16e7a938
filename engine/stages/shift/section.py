"""Class accuracy after a shift, against sensitivity; probes on other domains."""

from __future__ import annotations

from collections.abc import Iterator

from substyle.engine.report.data import Column, ComparedScore, Table, minus, scored, words
from substyle.engine.report.scatter import ScatterPlot, ScatterPoint, scatter_panels
from substyle.engine.report.section import Block, Data, Plots, Section, Text
from substyle.engine.results.model import BackboneResults, ResultsDocument, Robustness
from substyle.engine.results.statistics import FEWEST_CORRELATED
from substyle.engine.stages.shift import domains_section as domains


def sections(results: ResultsDocument) -> Iterator[Section]:
    """A section on shifts and one on domains, where there are any."""
    yield from domains.sections(results)
    yield from _shift(results)


def _shift(results: ResultsDocument) -> Iterator[Section]:
    table = shift_table(results)
    if table is None:
        return
    text = "Accuracy of the class probe on other or corrupted photographs of the same classes, and mean sensitivity to "
    text += f"the transformations. {shift_summary(results)}"
    blocks: list[Block] = [Text(text), Data(table, table.caption, saved=False), Data(shifts(results), hidden=True)]
    if plots := shift_plots(results):
        blocks.append(Plots("shift", scatter_panels(plots), tables=("shift",)))
        by = results.drawn((next(iter(results.ordered().values())).sampled or {}).get("resample_by"))
        note = "Loss: class accuracy on original test photographs minus that on the shift, on photographs of classes "
        note += "that the probe knows; others count as wrong in the column Own photographs. Intervals are "
        note += f"over {by}: how certain these numbers and the order of these backbones are, not what other "
        blocks.append(Text(f"{note}backbones would do.", note=True))
    yield Section("shift", "Shift", "Shift: do probes hold on other photographs?", tuple(blocks))


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Class accuracy on other photographs, and accuracies of probes of other domains."""
    yield from domains.scores(backbone)
    late = backbone.unconverged("class", "linear")
    for name, each in (backbone.shift or {}).items():
        if each and each.accuracy is not None:
            yield ComparedScore(f"shift_{name}", f"Class, {name}", each.accuracy, not late, each.images)


def shifts(results: ResultsDocument) -> Table:
    """Class accuracy on other photographs of the same classes."""
    columns = (
        *(*words("backbone"), Column("shift", "Photographs", "text")),
        *(Column("accuracy", "Class", interval=True), Column("images", "Images", "count")),
    )
    rows = [
        (
            name,
            key,
            scored(scores, "accuracy", probe=backbone.probe("class", "linear")),
            scores.images if scores else None,
        )
        for name, backbone in results.ordered().items()
        for key, scores in (backbone.shift or {}).items()
    ]
    return Table("shift", "Class accuracy on other photographs of the same classes.", columns, tuple(rows))


def shift_table(results: ResultsDocument) -> Table | None:
    """Class accuracy of backbones on test photographs and on every shift, and mean sensitivity."""
    names = list(dict.fromkeys(row[1] for row in shifts(results).rows))
    if not names:
        return None
    columns = [
        *words("backbone"),
        Column("original", "Own photographs", interval=True),
        *(Column(f"shift_{key}", key, interval=True) for key in names),
        Column("sensitivity", "Mean sensitivity", "number"),
    ]
    rows = []
    for name, backbone in results.ordered().items():
        if backbone.shift:
            moved = [each.value for each in (backbone.sensitivity or {}).values() if each is not None]
            original = scored(backbone.probe("class", results.first_head()), "original")
            probe = backbone.probe("class", "linear")
            shifted = [scored(backbone.shift.get(key), "accuracy", probe=probe) for key in names]
            rows.append((name, original, *shifted, sum(moved) / len(moved) if moved else None))
    return Table("shift", "Accuracy of the class probe on shifted photographs", tuple(columns), tuple(rows))


def shift_plots(results: ResultsDocument) -> list[ScatterPlot]:
    """A plot of trained backbones for each shift: mean sensitivity to the right, loss of class accuracy upwards."""
    plots = []
    for row in results.robustness or []:
        points = []
        for name, each in (row.backbones or {}).items():
            moved, lost = scored(each, "sensitivity"), scored(each, "loss")
            if moved is not None and lost is not None:
                points.append(ScatterPoint.of(name, moved, lost, "full"))
        if points:
            title = row.shift or "mean of all shifts"
            plots.append(ScatterPlot(title, tuple(points), _correlated(row), "sensitivity × 100", "loss, points"))
    return plots


def _correlated(row: Robustness) -> str:
    count = len(row.backbones or {})
    if row.spearman is None:
        return f"A rank correlation requires {FEWEST_CORRELATED} trained backbones, got {count}: not testable."
    return f"Over {count} backbones: {shown_correlations(row)}."


def shift_summary(results: ResultsDocument) -> str:
    """One sentence on the rank correlation of sensitivity and loss, over the mean of all shifts."""
    rows = results.robustness or []
    return _correlated(rows[-1]) if rows and rows[-1].backbones else ""


def shown_correlations(row: Robustness) -> str:
    """Format as ``Spearman's rho +0.60 (+0.20 to +0.80), Kendall's tau +0.40 (…), 95 % over photographs``."""
    texts = []
    for name, estimate in (("Spearman's rho", row.spearman), ("Kendall's tau", row.kendall)):
        if estimate is not None:
            number, *interval = (minus(f"{each:+.2f}") for each in (estimate.value, *(estimate.interval or [])))
            texts.append(f"{name} {number}" + (f" ({' to '.join(interval)})" if interval else ""))
    return f"{', '.join(texts)}, 95 % over photographs"
