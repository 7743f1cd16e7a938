"""Class accuracy after a shift, against sensitivity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from substyle.engine.report.claims import FEWEST_CORRELATED, shown_correlations
from substyle.engine.report.data import Column, Results, Table, dig, first_head, ordered, scored, words
from substyle.engine.report.extraction import SizePlot, SizePoint, draw_sizes
from substyle.engine.report.section import Block, Data, Plots, Section, Text, drawn
from substyle.engine.results.model import Robustness


def sections(results: Results) -> Iterator[Section]:
    """The section; none without shifts."""
    table = shift_table(results)
    if table is None:
        return
    text = "Accuracy of the class probe on other or corrupted photographs of the same classes, and mean sensitivity to "
    text += f"the transformations. {shift_summary(results)}"
    blocks: list[Block] = [Text(text), Data(table, table.caption, saved=False), Data(shifts(results), hidden=True)]
    if plots := shift_plots(results):
        blocks.append(Plots(tuple(plots), "shift", lambda: draw_sizes(plots)))
        note = "Loss: class accuracy on unchanged test photographs minus that on the shift. Intervals are over "
        note += f"{drawn(results)}: how certain these numbers and the order of these backbones are, not what other "
        blocks.append(Text(f"{note}backbones would do.", note=True))
    yield Section("shift", "Shift", "Shift", tuple(blocks))


def shifts(results: Results) -> Table:
    """Class accuracy on other photographs of the same classes."""
    columns = (
        *(*words("backbone"), Column("shift", "Photographs", "text")),
        *(Column("accuracy", "Class", interval=True), Column("images", "Images", "count")),
    )
    rows = [
        (name, key, scored(scores, "accuracy", "ci95", probe), dig(scores, "images"))
        for name in ordered(results)
        for probe in [dig(results, "backbones", name, "semantic", "linear")]
        for key, scores in (dig(results, "backbones", name, "shift") or {}).items()
    ]
    return Table("shift", "Class accuracy on other photographs of the same classes.", columns, tuple(rows))


def shift_table(results: Results) -> Table | None:
    """Class accuracy of backbones on test photographs and on every shift, and mean sensitivity."""
    names = list(dict.fromkeys(row[1] for row in shifts(results).rows))
    if not names:
        return None
    columns = [
        *words("backbone"),
        Column("clean", "Own photographs", interval=True),
        *(Column(f"shift_{key}", key, interval=True) for key in names),
        Column("sensitivity", "Mean sensitivity", "number"),
    ]
    rows = []
    for name in ordered(results):
        backbone = results["backbones"][name]
        if backbone.get("shift"):
            moved = [value for value in (backbone.get("sensitivity") or {}).values() if value is not None]
            clean = scored(dig(backbone, "semantic", first_head(results)), "clean")
            probe = dig(backbone, "semantic", "linear")
            shifted = [scored(dig(backbone, "shift", key), "accuracy", "ci95", probe) for key in names]
            rows.append((name, clean, *shifted, sum(moved) / len(moved) if moved else None))
    return Table("shift", "Accuracy of the class probe on shifted photographs", tuple(columns), tuple(rows))


def shift_plots(results: Results) -> list[SizePlot]:
    """A plot of trained backbones for each shift: mean sensitivity to the right, loss of class accuracy upwards."""
    plots = []
    for row in results.get("robustness") or []:
        points = []
        for name, each in (dig(row, "backbones") or {}).items():
            moved, lost = scored(each, "sensitivity"), scored(each, "loss")
            if moved is not None and lost is not None:
                points.append(SizePoint.of(name, moved, lost, "full"))
        if points:
            title = dig(row, "shift") or "mean of all shifts"
            plots.append(SizePlot(title, tuple(points), _correlated(row), "sensitivity × 100", "loss, points"))
    return plots


def _correlated(row: dict[str, Any]) -> str:
    count = len(dig(row, "backbones") or {})
    if dig(row, "spearman") is None:
        return f"A rank correlation requires {FEWEST_CORRELATED} trained backbones, got {count}: not testable."
    return f"Over {count} backbones: {shown_correlations(Robustness.model_validate(row))}."


def shift_summary(results: Results) -> str:
    """One sentence on the rank correlation of sensitivity and loss, over the mean of all shifts."""
    rows = results.get("robustness") or []
    return _correlated(rows[-1]) if rows and dig(rows[-1], "backbones") else ""
