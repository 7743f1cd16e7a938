"""Tables and figures of extractability (how easily labels are read) and of probe complexity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from substyle.engine.report.data import Column, Scored, Table, scored, show, show_interval, words
from substyle.engine.report.figures import FULL, OPEN, PAPER, THIRD, tip, wrapped
from substyle.engine.report.section import Panel
from substyle.engine.results.model import Extractability, ResultsDocument, Size

LINEAR = "linear"
_TASKS = {"fine": "style", "semantic": "class"}


def _entries(results: ResultsDocument) -> list[tuple[str, str, str, Extractability]]:
    """(backbone, task, head, entry) of extractability."""
    return [
        (name, task, head, entry)
        for task in _TASKS
        for name, backbone in results.ordered().items()
        for head, entry in ((backbone.extractability or {}).get(task) or {}).items()
        if entry
    ]


def extractability(results: ResultsDocument) -> Table:
    """How easily labels are read: control tasks, codelength, photographs needed and shuffled labels, beside chance."""
    columns = (
        *(*words("backbone", "task", "head"), Column("test", "Test", interval=True)),
        *(Column("task_accuracy", "Task accuracy", interval=True), Column("control", "Control", interval=True)),
        Column("selectivity", "Selectivity", "points", interval=True),
        Column("memorised", "Memorised", interval=True),
        Column("bits", "Bits per label", "number", interval=True),
        Column("compression", "Compression", "number", interval=True),
        Column("needed", "For 90%", "count", interval=True),
        *(Column("shuffled", "Shuffled"), Column("by_chance", "By chance", interval=True), *words("converged")),
    )
    rows: list[tuple[Any, ...]] = []
    entries = _entries(results)
    for name, task, head, entry in entries:
        key = "accuracy" if task == "fine" else "clean"
        needed = scored(entry.curve, "needed")
        parts = [part for part in (entry.selectivity, entry.codelength, entry.curve, entry.shuffled) if part]
        rows.append(
            (
                *(name, _TASKS[task], head),
                scored(results.probe(name, task, head), key),
                *(scored(entry.selectivity, part) for part in ("task", "control", "selectivity", "memorised")),
                *(scored(entry.codelength, part) for part in ("bits", "compression")),
                None if needed is None else tuple(None if n is None else round(n) for n in needed),
                entry.shuffled.accuracy if entry.shuffled else None,
                scored(entry.shuffled, "expected", "range95"),
                "no" if any(part.converged is False for part in parts) else "yes",
            )
        )
    for task in dict.fromkeys(task for _, task, _, _ in entries):
        chance = results.chance_of(task)
        codes = (entry.codelength.uniform if entry.codelength else None for _, own, _, entry in entries if own == task)
        uniform = next((code for code in codes if code is not None), None)
        if chance is not None:
            alone = (chance, None, None)
            code = [None if uniform is None else (each, None, None) for each in (uniform, 1.0)]
            memorised = alone if task == "fine" else None
            scores = (alone, alone, alone, (0.0, None, None), memorised, *code, None, chance, None)
            rows.append(("chance", _TASKS[task], "–", *scores, "–"))
    return Table("extractability", "How easily labels are read from each embedding.", columns, tuple(rows))


def extractability_summary(results: ResultsDocument) -> str:
    """Which backbone and which control take the fewest bits, and whether shuffled labels are at chance.

    Codelengths that have not converged are left out.
    """
    sentences = []
    entries = _entries(results)
    for task, what in _TASKS.items():
        found = [
            (entry.codelength.bits, name, entry.codelength)
            for name, own, head, entry in entries
            if (own, head) == (task, LINEAR) and entry.codelength and entry.codelength.converged
            if entry.codelength.bits is not None
        ]
        for kind, control in (("backbones", False), ("controls", True)):
            able = [one for one in found if bool(results.backbones[one[1]].control) is control]
            if able:
                bits, name, code = min(able, key=lambda one: one[0])
                uniform = "" if control else f"; uniform code {show(code.uniform, 'number')}"
                sentences.append(
                    f"{what.capitalize()} takes the fewest bits per label of all {kind} in {name}: "
                    f"{show(bits, 'number')} ({show_interval(code.bits_ci95, 'number')}{uniform})."
                )
    flags = [(name, task, entry.shuffled.at_chance if entry.shuffled else None) for name, task, _, entry in entries]
    known = [flag for flag in flags if flag[2] is not None]
    late = ", ".join(f"{name} ({_TASKS[task]})" for name, task, flag in known if not flag)
    if known:
        sentences.append(
            f"Probes of shuffled labels are at chance in {sum(bool(flag) for *_, flag in known)} of {len(known)} cases"
            + (f", not in {late}; one in 20 is expected not to be." if late else ".")
        )
    return " ".join(sentences)


def learning_curves(results: ResultsDocument) -> Table:
    """Test accuracy of linear probes by number of training photographs."""
    columns = (
        *(*words("backbone", "task"), Column("photographs", "Photographs", "count")),
        Column("accuracy", "Accuracy", interval=True),
    )
    rows = [
        (name, _TASKS[task], int(size), scored(point, "accuracy"))
        for name, task, _, entry in _entries(results)
        for size, point in ((entry.curve and entry.curve.points) or {}).items()
    ]
    return Table("learning_curves", "Accuracy of linear probes by training photographs.", columns, tuple(rows))


def architecture(name: str) -> str:
    """Display name of an architecture: ``2×256``."""
    return name if name == LINEAR else name.replace("x", "×")


def complexity(results: ResultsDocument) -> Table:
    """Accuracy of style and class by architecture of the probe."""
    columns = (
        *words("backbone", "probe"),
        *(Column("parameters", "Parameters, style", "count"), Column("class_parameters", "Class", "count")),
        Column("style", "Style", interval=True),
        Column("style_difference", "− linear", "points", interval=True),
        Column("class", "Class", interval=True),
        Column("class_difference", "− linear", "points", interval=True),
        Column("transformed", "Class, transformed", interval=True),
        *(*words("front"), Column("selected", "Selected for", "text"), *words("converged")),
    )
    rows = []
    for name, probe, row in _sizes(results):
        chosen = [_TASKS.get(task, task) for task in row.selected or []]
        rows.append(
            (
                *(name, architecture(probe), row.fine_parameters, row.semantic_parameters),
                *(scored(row, key) for task in _TASKS for key in (task, f"{task}_difference")),
                scored(row, "obfuscated"),
                *("yes" if row.front else "no", ", ".join(chosen), "yes" if row.both_converged else "no"),
            )
        )
    return Table("complexity", "Accuracy of style and class by depth × width of the probe.", columns, tuple(rows))


def _sizes(results: ResultsDocument) -> Iterator[tuple[str, str, Size]]:
    """(backbone, probe, scores) of all architectures."""
    for name, backbone in results.ordered().items():
        for probe, row in (backbone.complexity or {}).items():
            yield name, probe, row or Size()


@dataclass(frozen=True)
class SizePoint:
    """An architecture: class and style accuracy as (value, low, high).

    Attributes:
        kind: ``full``: selected by validation for both; ``open``: another; ``late``: not converged.
    """

    label: str
    substance: tuple[float, float, float]
    style: tuple[float, float, float]
    kind: str
    front: bool

    @classmethod
    def of(cls, label: str, substance: Scored, style: Scored, kind: str, *, front: bool = False) -> SizePoint:
        """A point whose unknown ends of intervals are its values."""
        x, y = ((v, v if low is None else low, v if high is None else high) for v, low, high in (substance, style))
        return cls(label, x, y, kind, front)


@dataclass(frozen=True)
class SizePlot:
    """Points with intervals on two axes: architectures of one backbone by class and style accuracy, if not labelled."""

    name: str
    points: tuple[SizePoint, ...]
    summary: str
    x_label: str = "class accuracy, %"
    y_label: str = "style accuracy, %"

    @property
    def front(self) -> list[SizePoint]:
        """Points of the Pareto front, left to right."""
        return sorted((p for p in self.points if p.front), key=lambda p: (p.substance[0], -p.style[0]))


def size_plots(results: ResultsDocument) -> list[SizePlot]:
    """Plots of all backbones with at least two architectures."""
    plots = []
    for name, backbone in results.ordered().items():
        rows = {probe: row or Size() for probe, row in (backbone.complexity or {}).items()}
        points = []
        for probe, row in rows.items():
            style, substance = scored(row, "fine"), scored(row, "semantic")
            if style is None or substance is None:
                continue
            kind = "late" if not row.both_converged else "full" if "both" in (row.selected or []) else "open"
            points.append(SizePoint.of(architecture(probe), substance, style, kind, front=bool(row.front)))
        if len(points) > 1:
            plots.append(SizePlot(name, tuple(points), complexity_summary(rows)))
    return plots


def complexity_summary(rows: Mapping[str, Size]) -> str:
    """What validation selects for style and for class, its difference to the linear probe, and the Pareto front."""
    sentences = []
    for task, what in _TASKS.items():
        name = next((probe for probe, row in rows.items() if task in (row.selected or [])), None)
        if name is None:
            sentences.append(f"{what.capitalize()}: no probe has converged.")
            continue
        row = rows[name]
        size = f"{architecture(name)}, {show(getattr(row, f'{task}_parameters'), 'count')} parameters"
        text = f"{what.capitalize()}: validation selects {size}, {show(getattr(row, task))}% on test photographs"
        difference = scored(row, f"{task}_difference")
        if name != LINEAR and difference is not None:
            low_high = show_interval(row.interval(f"{task}_difference"), "points") or "no interval"
            text += f", {show(difference[0], 'points')} points against the linear probe ({low_high})"
        sentences.append(text + ".")
    front = [architecture(probe) for probe, row in rows.items() if row.front]
    if front:
        sentences.append(f"On the Pareto front of test accuracies: {', '.join(front)}.")
    late = sum(not row.both_converged for row in rows.values())
    if late:
        sentences.append(f"{late} of {len(rows)} probes have not converged and are neither selected nor on the front.")
    return " ".join(sentences)


def size_panels(plots: Sequence[SizePlot]) -> tuple[Panel, ...]:
    """Panels of the plots."""
    return tuple(Panel(plot.name, partial(_draw, plot=plot), plot.summary) for plot in plots)


def _draw(axis: Any, plot: SizePlot) -> None:  # noqa: ANN401 (matplotlib ships no types)
    front = [(100 * p.substance[0], 100 * p.style[0]) for p in plot.front]
    axis.plot([x for x, _ in front], [y for _, y in front], color=THIRD, lw=1)
    middle = sum(p.substance[0] for p in plot.points) / len(plot.points)
    for point in plot.points:
        x, y = 100 * point.substance[0], 100 * point.style[0]
        colour = {"full": FULL, "open": OPEN, "late": THIRD}[point.kind]
        chosen = point.kind == "full"  # on top
        axis.plot([100 * v for v in point.substance[1:]], [y, y], color=colour, lw=0.6, alpha=0.4)
        axis.plot([x, x], [100 * v for v in point.style[1:]], color=colour, lw=0.6, alpha=0.4)
        (mark,) = axis.plot(x, y, "o", ms=4.5, mec=colour, mfc=colour if chosen else PAPER, zorder=3 + chosen)
        tip(mark, f"{point.label}: {show(point.substance[0])}, {show(point.style[0])}")
        if point.front or chosen:
            left = point.substance[0] > middle
            place: dict[str, Any] = {"xytext": (-5 if left else 5, 4), "ha": "right" if left else "left"}
            axis.annotate(wrapped(point.label), (x, y), textcoords="offset points", size=7, **place)
    axis.margins(0.1)
    axis.locator_params(nbins=5)
    axis.grid()
    axis.set(xlabel=plot.x_label, ylabel=plot.y_label)
