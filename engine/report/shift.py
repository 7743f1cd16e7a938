"""Distribution shift: class accuracy on other photographs, and sensitivity against the loss of accuracy."""

from __future__ import annotations

from typing import Any

from substyle.engine.report.claims import FEWEST_CORRELATED, shown_correlations
from substyle.engine.report.data import Column, Results, Table, dig, heads, ordered, scored
from substyle.engine.report.extraction import SizePlot, SizePoint


def shift_table(results: Results) -> Table | None:
    """Class accuracy of backbones on test photographs and on every shift, and mean sensitivity."""
    shifts = list(
        dict.fromkeys(key for name in ordered(results) for key in dig(results, "backbones", name, "shift") or {})
    )
    if not shifts:
        return None
    first = heads(results)[0] if heads(results) else ""
    columns = [
        Column("backbone", "Backbone", "text"),
        Column("clean", "Own photographs", interval=True),
        *(Column(f"shift_{key}", key, interval=True) for key in shifts),
        Column("sensitivity", "Mean sensitivity", "number"),
    ]
    rows = []
    for name in ordered(results):
        backbone = results["backbones"][name]
        if backbone.get("shift"):
            moved = [value for value in (backbone.get("sensitivity") or {}).values() if value is not None]
            clean = scored(dig(backbone, "semantic", first), "clean")
            probe = dig(backbone, "semantic", "linear")
            shifted = [scored(dig(backbone, "shift", key), "accuracy", "ci95", probe) for key in shifts]
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
    return f"Over {count} backbones: {shown_correlations(row)}."


def shift_summary(results: Results) -> str:
    """One sentence on the rank correlation of sensitivity and loss, over the mean of all shifts."""
    rows = results.get("robustness") or []
    return _correlated(rows[-1]) if rows and dig(rows[-1], "backbones") else ""
