"""Sections on probes of transformation, kind and class; how they depend on probe, layer, severity and training."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.report import curves
from substyle.engine.report.answers import answer
from substyle.engine.report.data import ComparedScore, Table, head_name, in_words, show
from substyle.engine.report.dots import dot_plots
from substyle.engine.report.figures import draw_heat, draw_matrix, wrapped
from substyle.engine.report.findings import unconverged
from substyle.engine.report.heat_tables import HeatTable, accuracies
from substyle.engine.report.section import Block, Data, Details, Heading, Heat, Panel, Plots, Section, Strip, Text
from substyle.engine.report.tables import (
    by_transformation,
    calibrations,
    comparisons,
    confusions,
    equal_width,
    multitask,
    overview,
    redrawn,
    training,
)
from substyle.engine.results.model import BackboneResults, Confusion, ResultsDocument

_SCORES = (
    ("transformation", "Transformation", "transformation", "accuracy"),
    ("seen", "Kind, seen", "kind", "seen"),
    ("held_out", "Kind, held out", "kind", "held_out"),
    ("rotation", "Kind, each held out in turn", "kind_rotation", "accuracy"),
    ("original", "Class, original", "class", "original"),
    ("transformed", "Class, transformed", "class", "transformed"),
)
_FEW = 20  # rows of a table that is shown at once
_FEW_CLASSES = 12  # in a matrix with wide cells


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The sections that have numbers."""
    for make in _MAKERS:
        section = make(results)
        if any(not (isinstance(block, Data) and block.hidden) for block in section.blocks):
            yield section


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Accuracies by head; held-out ones with intervals over photographs and transformations."""
    for key, heading, task, name in _SCORES:
        for head, probe in backbone.probes(task).items():
            if (value := getattr(probe, name)) is not None:
                title = f"{heading}, {head_name(head)}"
                outcome = (task.removeprefix("kind_"), name, head)
                converged = not probe.unconverged
                yield ComparedScore(f"{key}_{head}", title, value, converged, outcome=outcome)


def _chance(results: ResultsDocument, task: str, text: str = "; chance is {}") -> str:
    value = results.chance_of(task)
    return "" if value is None else text.format(show(value))


def _table(table: Table, label: str = "", **options: bool) -> list[Block]:
    """A table that has rows."""
    return [Data(table, label or table.caption, **options)] if table.rows else []


def _heat(tables: Sequence[tuple[str, HeatTable]], label: str) -> Heat:
    """Tables by head."""
    return Heat(tuple((title, "", table) for title, table in _by_head(tables)), label)


def _by_head(tables: Sequence[tuple[str, HeatTable]]) -> tuple[tuple[str, HeatTable], ...]:
    """Tables with titles."""
    return tuple((f"{head_name(head)[:1].upper()}{head_name(head)[1:]} probes", table) for head, table in tables)


def _overview(results: ResultsDocument) -> Section:
    tried = [head_name(head) for head in results.heads()]
    blocks: list[Block] = []
    if plots := dot_plots(results):
        text = (
            f"Accuracy on test photographs in per cent; lines are 95% intervals from a bootstrap over {results.drawn()}"
        )
        text += ", dashed lines are chance."
        if len(results.real()) < len(results.backbones):
            text += " Controls, in grey, are pixels, simple statistics or an untrained network."
        if len(tried) > 1:
            text += f" The second and third plot show {tried[0]} probes."
        blocks += [plots, Text(text, note=True)]
    if table := _table(overview(results), "Overview of every backbone and head"):
        text = f"Transformation: one of {results.suite_size}"
        text += _chance(results, "transformation", " (chance {})")
        text += ". Seen, held out: the kind of transformations in, or not in, the training set"
        text += _chance(results, "kind", " (chance {})")
        text += "; the gap is over the same kinds. Intervals of held-out scores and gaps are over "
        text += f"{results.drawn()} and transformations."
        text += _chance(results, "class", " Class: of original and of transformed photographs (chance {}).")
        text += " † The probe has not converged." if unconverged(results) else ""
        blocks += [*table, Text(text, note=True)]
    return Section("overview", "Overview", "Overview: how does each backbone score?", tuple(blocks) if table else ())


def _fingerprint(results: ResultsDocument) -> Section:
    blocks: list[Block] = [Data(by_transformation(results, "transformation"), hidden=True)]
    if tables := accuracies(results, "transformation"):
        held_out = frozenset(row.name for row in results.transformations if row.role == "held_out")
        text = "How often a probe recognises each transformation: per cent of the variants of test photographs"
        text += f"{_chance(results, 'transformation')}."
        if held_out:
            text += " ○: held out when kinds are learnt; the probes shown here are trained on all."
        first = tables[0][1]
        draw = partial(_draw_strip, table=first, marked=held_out)
        size = (0.21 * max(len(first.rows), 10), 0.3 * len(first.columns))
        panel = Panel("", draw, spoken="recognised transformations")
        plots = Plots("fingerprint", (panel,), size, tables=("per_transformation",))
        text += " Point at a cell, or choose one with the arrow keys, to see what it says below."
        blocks += [Text(text), Strip(_by_head(tables), held_out, plots)]
    title = "Fingerprint: which transformations does an embedding tell apart?"
    own = answer(results, "transformation")
    return Section("transformation", "Fingerprint", title, tuple(blocks), own, front=True)


def _draw_strip(axis: Any, table: HeatTable, marked: Collection[str]) -> None:  # noqa: ANN401 (matplotlib ships no types)
    """Draw a heat table as a row per backbone: values as opacity of one colour, and in per cent."""
    value_BT = [[math.nan if cell.heat is None else cell.heat for cell in cells] for cells in table.by_column()]
    draw_heat(axis, value_BT, most=0.55, aspect="auto")
    names = [f"○ {name}" if name in marked else name for name, _ in table.rows]
    axis.set_xticks(range(len(names)), [wrapped(name) for name in names], rotation=90, size=7)
    axis.set_yticks(range(len(value_BT)), [wrapped(name) for name, _ in table.columns], size=7)
    for y, row in enumerate(value_BT):
        for x, value in enumerate(row):
            if not math.isnan(value):
                axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", size=6)


def _confusions(results: ResultsDocument) -> Section:
    blocks: list[Block] = [Data(confusions(results, task), hidden=True) for task in ("transformation", "kind")]
    titles = {"transformation": "Transformations", "kind": "Kinds"}
    found = {title: each for task, title in titles.items() if (each := matrices(results, task))}
    if found:
        text = "Rows are the truth, columns the prediction; opacity is the square root of the fraction, so that rare "
        blocks.append(Text(f"{text}confusions are visible.", note=True))
    for title, each in found.items():
        blocks += [Heading(title), each]
    return Section("confusions", "Confusions", "Confusions: what is taken for what?", tuple(blocks))


def _held_out(results: ResultsDocument) -> Section:
    blocks: list[Block] = [Data(by_transformation(results, task), hidden=True) for task in ("kind", "kind_rotation")]
    new, seen = (accuracies(results, "kind", role=role) for role in ("held_out", "train"))
    turned = accuracies(results, "kind_rotation")
    if new or turned:
        text = "Probes are trained to predict the kind from some transformations of each kind and tested on "
        text += "others. Numbers are accuracies on test photographs in per cent, with 95% intervals"
        blocks.append(Text(f"{text}{_chance(results, 'kind')}."))
        blocks.append(_heat(new, "Kind of held-out transformations"))
        if seen:
            tables = _heat(seen[:1], "Kind of seen transformations")
            blocks.append(Details("Transformations seen in training", (tables,)))
        if turned:
            blocks.append(Heading("Each transformation held out in turn"))
            blocks.append(_heat(turned, "Kind with one transformation held out"))
        if table := _table(redrawn(results)):
            blocks.append(Details("Random held-out sets", tuple(table)))
        if table := _table(equal_width(results)):
            text = "Linear probes on a random projection of each embedding to a common width, so that differences are "
            blocks.append(Details("At equal width", (*table, Text(f"{text}not due to width.", note=True))))
    title = "Held-out transformations: are they recognised?"
    return Section("held-out", "Held out", title, tuple(blocks), answer(results, "kind"))


def _substance(results: ResultsDocument) -> Section:
    blocks: list[Block] = [Data(by_transformation(results, "class"), hidden=True)]
    if tables := accuracies(results, "class"):
        text = "Probes are trained on original photographs only. Numbers are accuracies on test photographs after each "
        blocks.append(Text(f"{text}transformation, in per cent{_chance(results, 'class')}."))
        blocks.append(_heat(tables, "Class accuracy for each transformation"))
    return Section("class", "Class", "Which class?", tuple(blocks), answer(results, "class"))


def _severity(results: ResultsDocument) -> Section:
    blocks: list[Block] = []
    if plots := curves.severity_plots(results):
        every = curves.severities(results)
        text = f"Accuracy of {head_name(results.first_head())} probes of transformation (solid) and of class (dashed) "
        text += "at each severity, in per cent, on test photographs."
        note = "Severities of a transformation are one class of the transformation probe. Halfway: where the curve, "
        note += (
            "linear between severities and at chance at severity 0, first crosses the mean of chance and its maximum, "
        )
        note += "if the interval at the strongest severity lies above chance. Vertical lines and intervals: 95%, over "
        note += f"{results.drawn()}. Hollow points: the probe has not converged."
        panels = curves.curve_panels(plots, "severity")
        blocks = [
            Text(text),
            Plots("severity", panels, across=4, shared=True, tables=("severities",)),
            Data(curves.halfway(results), curves.halfway(results).caption),
            Text(note, note=True),
            Details(f"All numbers ({len(every.rows)})", (Data(every, every.caption),)),
        ]
    return Section("severity", "Severity", "Severity: how strong must it be?", tuple(blocks))


def _depth(results: ResultsDocument) -> Section:
    blocks: list[Block] = []
    if plots := curves.depth_plots(results):
        text = f"Accuracy of {head_name(results.first_head())} probes on the layers of a network, in per cent, on test "
        note = f"Vertical lines are 95% intervals; those of held-out transformations are over {results.drawn()} and "
        note += "transformations. Held out: the kind of held-out transformations. Hollow points: "
        blocks = [
            Text(f"{text}photographs."),
            Plots("depth", curves.curve_panels(plots, "layer"), shared=True, tables=("overview",)),
            Text(f"{note}the probe has not converged.", note=True),
        ]
    return Section("depth", "Depth", "Depth: what does each layer know?", tuple(blocks))


def _together(results: ResultsDocument) -> Section:
    text = (
        "One hidden layer with two heads, trained on transformation and class together, compared with single-task "
        "twins trained on the same rows in the same order, each for as many steps as help it. Differences whose "
        "interval contains 0 are not significant."
    )
    table = _table(multitask(results), "Multi-task probes and their single-task twins")
    title = "Multi-task: can one probe predict both?"
    return Section("together", "Multi-task", title, (Text(text), *table) if table else ())


def _comparisons(results: ResultsDocument) -> Section:
    every = comparisons(results)
    if not every.rows:
        return Section("comparisons", "Comparisons", "Comparisons: which differences are clear?", ())
    text = (
        "Differences between backbones, controls included, on the same test photographs, in points, with 95% "
        f"intervals from a paired bootstrap over {results.drawn()} and, two-way, over {results.drawn()} and "
        "transformations. Error: standard error of the difference, including training variance if probes were "
        "trained on resampled photographs. p: two-sided, after Holm's correction over all pairs of the same task, "
        "metric and head; differences with p below 0.05 are called clear. At equal width: probes on random projections "
        "to a common width. Metrics of class: original and transformed photographs."
    )
    trained = comparisons_between(every, results.real(), results.first_head())
    blocks: list[Block] = [Text(text)]
    if trained.rows and len(trained.rows) <= _FEW:
        blocks.append(Data(trained, "Paired differences between backbones", saved=False))
    whole = Data(every, "All paired differences", hidden=len(every.rows) == len(trained.rows) <= _FEW)
    blocks.append(whole if whole.hidden else Details(f"All comparisons ({len(every.rows)})", (whole,)))
    return Section("comparisons", "Comparisons", "Comparisons: which differences are clear?", tuple(blocks))


def _training(results: ResultsDocument) -> Section:
    table, late = training(results), unconverged(results)
    if not table.rows:
        return Section("training", "Training", "Training: have the probes converged?", ())
    text = "All probes have converged."
    if late:
        each = ", ".join(f"{name} ({in_words(task)}, {head_name(head)})" for name, task, head in late)
        text = f"Not converged, marked † in tables and excluded from rankings: {each}."
    note = (
        "Linear probes are solved to a gradient tolerance; MLPs are retrained with twice the steps until that no "
        "longer helps. Edge: the selected regularisation is at the end of the grid, so a better one may be outside."
    )
    hidden = Data(table, "Convergence of all probes"), Text(note, note=True)
    blocks: list[Block] = [Text(text), Details(f"All probes ({len(table.rows)})", hidden)]
    if (errors := calibrations(results)).rows:
        note = "Expected calibration error on test photographs, in per cent: the mean distance between the probability "
        note += "of the most likely label and how often it is right, in 15 bins. The temperature is fitted to "
        note += "validation photographs; predictions use it. Few photographs make errors look larger than they are."
        blocks.append(Details("Calibration", (Data(errors, errors.caption), Text(note, note=True))))
    return Section("training", "Training", "Training: have the probes converged?", tuple(blocks))


_MAKERS = (
    *(_overview, _fingerprint, _confusions, _held_out, _substance, _severity, _depth),
    *(_together, _comparisons, _training),
)


def matrices(results: ResultsDocument, task: str) -> Plots | None:
    """The confusion matrix of a task for each backbone, by the first head that has one; None without any."""
    panels, side = [], 0.0
    for name, backbone in results.ordered().items():
        for head in results.heads():
            probe = backbone.probe(task, head)
            if probe is not None and probe.confusion is not None and probe.confusion.labels:
                labels, share_CC = probe.confusion.labels, confusion_shares(probe.confusion)
                worst = [
                    f"{truth} predicted as {other}: {show(share)}%"
                    for truth, other, share in worst_confusions(labels, share_CC)
                ]
                caption = f"Most frequent confusions: {'; '.join(worst)}." if worst else ""
                # the square root makes confusions of a few per cent visible
                draw = partial(draw_matrix, names=labels, value_CC=np.sqrt(share_CC))
                side = max(side, len(labels) * (0.28 if len(labels) <= _FEW_CLASSES else 0.16))
                panels.append(Panel(f"{name}, {head_name(head)}", draw, caption))
                break
    name = f"confusion_{task}"
    return Plots(name, tuple(panels), (side, side), across=2, tables=(name,)) if panels else None


def confusion_shares(confusion: Confusion) -> NDArray[np.float64]:
    """Fractions of predictions (columns) among the photographs of each true label (rows)."""
    counts_CC = np.asarray(confusion.counts, np.float64)
    share_CC: NDArray[np.float64] = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    return share_CC


def worst_confusions(
    labels: Sequence[str], share_CC: NDArray[np.float64], count: int = 8
) -> list[tuple[str, str, float]]:
    """The most frequent (truth, prediction, fraction of the truth's row)."""
    off_CC = share_CC * (1 - np.eye(len(labels)))
    order = zip(*np.unravel_index(np.argsort(-off_CC, axis=None, kind="stable")[:count], off_CC.shape), strict=True)
    return [(labels[i], labels[j], float(off_CC[i, j])) for i, j in order if off_CC[i, j] > 0]


def comparisons_between(table: Table, names: Iterable[str], head: str) -> Table:
    """Comparisons by one head between different backbones of ``names``."""
    rows = [row for row in table.rows if row[2] == head and row[3] != row[4] and {row[3], row[4]} <= set(names)]
    return replace(table, rows=tuple(rows))
