"""Other photographs: class accuracy after a shift, against sensitivity, and transfer of probes between domains."""

from __future__ import annotations

from typing import Any

from substyle.engine.report.claims import FEWEST_CORRELATED, shown_correlations
from substyle.engine.report.data import Column, Results, Table, dig, first_head, ordered, real, scored, show, words
from substyle.engine.report.extraction import SizePlot, SizePoint
from substyle.engine.report.findings import SCORES, task_score
from substyle.engine.results.model import Robustness


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


def domains(results: Results) -> Table:
    """Scores of linear probes by training domain, a column for each test domain."""
    every = [dig(results, "backbones", backbone, "domains") or {} for backbone in ordered(results)]
    cells = [cell for tasks in every for task in tasks.values() for cell in task.items()]
    names = list(dict.fromkeys(name for trained, row in cells for name in (trained, *row)))  # the study's own first
    columns = (
        *(*words("backbone", "score"), Column("trained", "Trained on", "text")),
        *(Column(f"on_{name}", name, interval=True) for name in names),
    )
    rows = []
    for backbone in ordered(results):
        for heading, task, key in SCORES:
            for trained, row in (dig(results, "backbones", backbone, "domains", task) or {}).items():
                values = [task_score(row.get(name), task, key) for name in names]
                if any(values):
                    rows.append((backbone, heading, trained, *values))
    caption = "Accuracy of linear probes: trained on one domain, scored on another."
    return Table("domains", caption, columns, tuple(rows))


def domains_summary(results: Results) -> str:
    """Which style transfers worst, for each trained backbone, and which transformation loses most.

    Probes that have not converged are left out.
    """
    sentences = []
    for backbone in real(results):
        cells = dig(results, "backbones", backbone, "domains", "fine") or {}
        lost: list[tuple[float, str, str]] = []
        for trained, row in cells.items():
            for tested, cell in row.items():
                both = dig(cells, tested, tested), cell
                own, other = (dig(each, "accuracy") if dig(each, "converged") is not False else None for each in both)
                if tested != trained and own is not None and other is not None:
                    lost.append((other - own, trained, tested))
        if not lost:
            continue
        change, trained, tested = min(lost)
        text = f"Style of {backbone} transfers worst from {trained} to {tested}: {show(change, 'points')} points"
        text += f" against a probe of {tested}"
        text += f", the lowest of {len(lost)} differences" if len(lost) > 1 else ""
        own, other = (dig(cells, each, tested, "by_transformation") or {} for each in (tested, trained))
        drops = [(other[t] - own[t], t) for t in own if own[t] is not None and other.get(t) is not None]
        if drops and min(drops)[0] < 0:
            text += f", most for {min(drops)[1]} ({show(min(drops)[0], 'points')}, the lowest of {len(drops)})"
        sentences.append(f"{text}.")
    return " ".join(sentences)
