"""Table, figures and section of probe complexity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from substyle.engine.report.data import Column, Table, scored, show, show_interval, words
from substyle.engine.report.scatter import ScatterPlot, ScatterPoint, scatter_panels
from substyle.engine.report.section import Block, Data, Details, Plots, Section, Text
from substyle.engine.results.model import Estimate, Finite, Model, ResultsDocument, ShareEstimate, Texts

LINEAR = "linear"
_TASKS = ("transformation", "class")


class Size(Model):
    """Scores of MLPs of one depth and width; differences are to the linear probe."""

    depth: int | None = None
    width: int | None = None
    transformation_parameters: int | None = None
    class_parameters: int | None = None
    transformation: Estimate | None = None
    transformation_difference: Estimate | None = None
    class_: Estimate | None = Field(default=None, alias="class")
    class_difference: Estimate | None = None
    transformed: ShareEstimate | None = None
    transformed_difference: Estimate | None = None
    transformation_validation: Finite | None = None
    class_validation: Finite | None = None
    front: bool | None = None
    transformation_converged: bool | None = None
    class_converged: bool | None = None
    selected: Texts | None = None

    @property
    def both_converged(self) -> bool:
        """Whether both probes have converged."""
        return bool(self.transformation_converged and self.class_converged)


Results = dict[str, Size | None]  # by architecture


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without results."""
    table, plots = complexity(results), size_plots(results)
    if not table.rows:
        return
    text = (
        "Accuracy of transformation and of class (original photographs), on test photographs, by every depth × width, "
    )
    note = (
        "Filled: the probe with the highest mean validation accuracy of both tasks; grey: not converged. The grey line "
    )
    note += "is the Pareto front. Axes do not start at 0; faint lines are 95% intervals. Sizes are hidden layers × "
    note += "units; linear probes have none."
    below = "Differences to the linear probe are paired. Each test accuracy is of the learning rate that validation "
    below += "selects; the front is of test accuracies, and so favours chance differences when there are many probes."
    blocks: list[Block] = [Text(f"{text}in per cent.")]
    if plots:
        blocks.append(Plots("complexity", scatter_panels(plots), tables=("complexity",)))
    blocks += [
        Text(note, note=True),
        Details(f"All probes ({len(table.rows)})", (Data(table, table.caption), Text(below, note=True))),
    ]
    yield Section("complexity", "Complexity", "Complexity: does it depend on the probe?", tuple(blocks))


def architecture(name: str) -> str:
    """Display name of an architecture: ``2×256``."""
    return name if name == LINEAR else name.replace("x", "×")


def complexity(results: ResultsDocument) -> Table:
    """Accuracy of transformation and class by architecture of the probe."""
    columns = (
        *words("backbone", "probe"),
        *(Column("parameters", "Parameters, transformation", "count"), Column("class_parameters", "Class", "count")),
        Column("transformation", "Transformation", interval=True),
        Column("transformation_difference", "− linear", "points", interval=True),
        Column("class", "Class", interval=True),
        Column("class_difference", "− linear", "points", interval=True),
        Column("transformed", "Class, transformed", interval=True),
        *(*words("front"), Column("selected", "Selected for", "text"), *words("converged")),
    )
    rows = []
    for name, probe, row in _sizes(results):
        chosen = list(row.selected or [])
        rows.append(
            (
                *(name, architecture(probe), row.transformation_parameters, row.class_parameters),
                *(scored(row, key) for task in _TASKS for key in (task, f"{task}_difference")),
                scored(row, "transformed"),
                *("yes" if row.front else "no", ", ".join(chosen), "yes" if row.both_converged else "no"),
            )
        )
    return Table(
        "complexity", "Accuracy of transformation and class by depth × width of the probe.", columns, tuple(rows)
    )


def _sizes(results: ResultsDocument) -> Iterator[tuple[str, str, Size]]:
    """(backbone, probe, scores) of all architectures."""
    for name, sizes in results.entries("complexity").items():
        for probe, row in sizes.items():
            yield name, probe, row or Size()


def size_plots(results: ResultsDocument) -> list[ScatterPlot]:
    """Plots of all backbones with at least two architectures."""
    plots = []
    for name, sizes in results.entries("complexity").items():
        rows = {probe: row or Size() for probe, row in sizes.items()}
        points = []
        for probe, row in rows.items():
            transformation, class_ = scored(row, "transformation"), scored(row, "class")
            if transformation is None or class_ is None:
                continue
            kind = "late" if not row.both_converged else "full" if "both" in (row.selected or []) else "open"
            points.append(ScatterPoint.of(architecture(probe), class_, transformation, kind, front=bool(row.front)))
        if len(points) > 1:
            plots.append(ScatterPlot(name, tuple(points), complexity_summary(rows)))
    return plots


def complexity_summary(rows: Mapping[str, Size]) -> str:
    """What validation selects for each task, its difference to the linear probe, and the Pareto front."""
    sentences = []
    for task in _TASKS:
        name = next((probe for probe, row in rows.items() if task in (row.selected or [])), None)
        if name is None:
            sentences.append(f"{task.capitalize()}: no probe has converged.")
            continue
        row = rows[name]
        size = f"{architecture(name)}, {show(getattr(row, f'{task}_parameters'), 'count')} parameters"
        text = f"{task.capitalize()}: validation selects {size}, {show(row.entry(task))}% on test photographs"
        difference: Estimate | None = getattr(row, f"{task}_difference")
        if name != LINEAR and difference is not None:
            low_high = show_interval(difference.interval, "points") or "no interval"
            text += f", {show(difference, 'points')} points against the linear probe ({low_high})"
        sentences.append(text + ".")
    front = [architecture(probe) for probe, row in rows.items() if row.front]
    if front:
        sentences.append(f"On the Pareto front of test accuracies: {', '.join(front)}.")
    late = sum(not row.both_converged for row in rows.values())
    if late:
        sentences.append(f"{late} of {len(rows)} probes have not converged and are neither selected nor on the front.")
    return " ".join(sentences)
