"""Accuracy against the severity of transformations, for each backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from substyle.engine.report.data import Column, Results, Table, dig, heads, ordered, real, scored, scored_under
from substyle.engine.report.figures import Curve, CurvePlot

# line colours of backbones, in order; readable on light and dark pages
COLOURS = ("#1f6fb5", "#c8561b", "#3a8f5c", "#8a5fb8", "#b8923a", "#4aa5a5", "#b5476d", "#7a828c")
_TASKS = (("style", "fine"), ("class", "semantic"))


def _curves(results: Results, task: str) -> dict[str, Mapping[str, Any]]:
    """Curves of the first head by backbone, then by transformation."""
    head = (*heads(results), "")[0]
    found = {name: dig(results, "backbones", name, task, head, "by_severity") for name in ordered(results)}
    return {name: curves for name, curves in found.items() if curves}


def names(results: Results) -> list[str]:
    """Transformations with a curve, in suite order."""
    curves = _curves(results, "fine") | _curves(results, "semantic")
    return list(dict.fromkeys(name for each in curves.values() for name in each))


def severities(results: Results) -> Table:
    """Accuracies and sensitivity at each severity."""
    of_task, head = {task: _curves(results, task) for _, task in _TASKS}, (*heads(results), "")[0]
    rows = []
    for backbone in ordered(results):
        probes = [dig(results, "backbones", backbone, task, head) for _, task in _TASKS]
        for name in names(results):
            curves = {task: dig(of_task[task], backbone, name) for _, task in _TASKS}
            levels: list[int] = next((curve["severities"] for curve in curves.values() if curve), [])
            for at, severity in enumerate(levels):
                values = [
                    scored({"value": curve["accuracy"][at], "value_ci95": curve["ci95"][at]}, "value", probe=probe)
                    if curve
                    else None
                    for curve, probe in zip(curves.values(), probes, strict=True)
                ]
                moved = scored_under(results["backbones"][backbone], "sensitivity", f"{name}@{severity}")
                rows.append((backbone, name, severity, *values, moved))
    columns = (
        *(Column(key, key.capitalize(), "text") for key in ("backbone", "transformation")),
        Column("severity", "Severity", "count"),
        *(Column(label, f"{label.capitalize()} accuracy", interval=True) for label, _ in _TASKS),
        Column("sensitivity", "Sensitivity", "number", interval=True),
    )
    return Table("severities", "Accuracy and sensitivity at each severity.", columns, tuple(rows))


def halfway(results: Results) -> Table:
    """Severity at which style accuracy is halfway between chance and its maximum: a column per backbone."""
    curves = _curves(results, "fine")
    columns = (
        Column("transformation", "Transformation", "text"),
        *(Column(name, name, "number", interval=True) for name in curves),
    )
    head = (*heads(results), "")[0]
    probes = [dig(results, "backbones", backbone, "fine", head) for backbone in curves]
    rows = [
        (name, *(scored(dig(c, name), "halfway", probe=p) for c, p in zip(curves.values(), probes, strict=True)))
        for name in names(results)
    ]
    caption = "Severity at which style accuracy is halfway between chance and its maximum."
    return Table("halfway", caption, columns, tuple(row for row in rows if any(row[1:])))


def severity_plots(results: Results) -> list[CurvePlot]:
    """Plots of transformations, of all backbones."""
    of_task = {task: _curves(results, task) for _, task in _TASKS}
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(ordered(results))}
    plots = []
    for name in names(results):
        curves = []
        for dashed, (_, task) in enumerate(_TASKS):
            for backbone, each in of_task[task].items():
                curve = each.get(name)
                rows = zip(curve["severities"], curve["accuracy"], curve["ci95"], strict=True) if curve else ()
                points = tuple((s, v, *(ci or (None, None))) for s, v, ci in rows if v is not None)
                if points:
                    curves.append(Curve(backbone, colours[backbone], bool(dashed), points))
        if curves:
            last = max(point[0] for curve in curves for point in curve.points)
            plots.append(CurvePlot(name, 1, last, tuple(range(1, last + 1)), tuple(curves), _summary(results, name)))
    return plots


def _summary(results: Results, name: str) -> str:
    """Which trained backbone names the transformation at the lowest severity, and whether another is clearly later.

    Probes that have not converged are left out.
    """
    curves, head = _curves(results, "fine"), (*heads(results), "")[0]
    trained = [b for b in real(results) if dig(results, "backbones", b, "fine", head, "converged") is not False]
    found = [(backbone, scored(dig(curves, backbone, name), "halfway")) for backbone in trained]
    known = sorted(((backbone, half) for backbone, half in found if half is not None), key=lambda pair: pair[1][0])
    if not known:
        return "No converged probe of a backbone names it clearly above chance."
    first, half = known[0]
    text = f"Halfway at severity {half[0]:.1f} ({first})"
    later = [(b, h) for b, h in known[1:] if h[1] is not None and half[2] is not None and h[1] > half[2]]
    if later:
        return f"{text}; clearly later: {', '.join(f'{b} ({h[0]:.1f})' for b, h in later)}."
    return f"{text}; no other backbone is clearly later." if len(known) > 1 else f"{text}."
