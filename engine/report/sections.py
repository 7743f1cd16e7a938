"""What the page shows beside heat tables, laid out: rows of dots, bars, matrices. The template only draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from substyle.engine.report.cells import Column, Table, scored
from substyle.engine.report.figures import Matrix, confusion
from substyle.engine.report.results import Results, dig, head_name, heads, ordered
from substyle.engine.report.standing import interval_key


@dataclass(frozen=True)
class Dot:
    """A value with its interval on a scale from 0 to 1; ``shape`` is ``full`` or ``open``."""

    value: float
    low: float | None
    high: float | None
    shape: str
    label: str


@dataclass(frozen=True)
class DotRow:
    """One backbone's dots on a common scale."""

    name: str
    control: bool
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class DotPlot:
    """Dots of every backbone for one question, chance beside them, and what the shapes mean."""

    title: str
    rows: tuple[DotRow, ...]
    chance: float | None
    key: tuple[tuple[str, str], ...]


def _plot(results: Results, title: str, task: str, wanted: Sequence[tuple[str, str, str, str]]) -> DotPlot | None:
    """``wanted``: (head, score, shape, label) of each dot of a row."""
    rows = []
    for name in ordered(results):
        dots = []
        for head, key, shape, label in wanted:
            scores = dig(results, "backbones", name, task, head)
            value = dig(scores, key)
            if value is not None:
                low, high = dig(scores, interval_key(scores, task, key)) or (None, None)
                dots.append(Dot(value, low, high, shape, label))
        if dots:
            rows.append(DotRow(name, bool(dig(results, "backbones", name, "control")), tuple(dots)))
    if not rows:
        return None
    used = {dot.label for row in rows for dot in row.dots}
    shapes = tuple((shape, label) for _, _, shape, label in wanted if label in used)
    return DotPlot(title, tuple(rows), dig(results, "chance", task), shapes)


def dot_plots(results: Results) -> list[DotPlot]:
    """The three questions: style, new styles, substance."""
    tried = heads(results)
    if not tried:
        return []
    first, shapes = tried[0], ("full", "open")
    plots = (
        _plot(
            results,
            "Style: which transformation?",
            "fine",
            [(head, "accuracy", shapes[min(i, 1)], f"{head_name(head)} probe") for i, head in enumerate(tried)],
        ),
        _plot(
            results,
            "New styles: which coarse class?",
            "coarse",
            [(first, "seen", "full", "seen in training"), (first, "held_out", "open", "held out")],
        ),
        _plot(
            results,
            "Substance: which class?",
            "semantic",
            [(first, "clean", "full", "unchanged photographs"), (first, "obfuscated", "open", "transformed")],
        ),
    )
    return [plot for plot in plots if plot is not None]


@dataclass(frozen=True)
class Bar:
    """Shares of one backbone that add up to 1.

    Attributes:
        parts: (name, share, its interval or None).
        edges: intervals of the first part's end and the last part's start, in shares of the bar.
    """

    name: str
    control: bool
    parts: tuple[tuple[str, float, list[float] | None], ...]
    edges: tuple[tuple[float, float], ...]


def balance_bars(results: Results) -> list[Bar]:
    """What the nearest other variant shares."""
    bars = []
    for name in ordered(results):
        backbone = results["backbones"][name]
        parts = [
            (key, dig(backbone, "balance", key), dig(backbone, "balance_ci95", key))
            for key in ("same_image", "same_transformation", "neither")
        ]
        if all(value is not None for _, value, _ in parts):
            first, last = parts[0][2], parts[-1][2]
            edges = ([(first[0], first[1])] if first else []) + ([(1 - last[1], 1 - last[0])] if last else [])
            bars.append(Bar(name, bool(dig(backbone, "control")), tuple(parts), tuple(edges)))
    return bars


def matrices(results: Results, task: str) -> list[tuple[str, Matrix]]:
    """("backbone, head", confusion matrix of its first head) of a task."""
    found = []
    for name in ordered(results):
        for head in heads(results):
            matrix = confusion(dig(results, "backbones", name, task, head, "confusion"))
            if matrix is not None:
                found.append((f"{name}, {head_name(head)}", matrix))
                break
    return found


def knn_beside_probes(results: Results) -> list[Table]:
    """k-NN accuracy for style and for class, with the probes' scores of the same task beside it."""
    ks = sorted(
        {int(k) for name in ordered(results) for k in dig(results, "backbones", name, "knn", "transformation") or {}}
    )
    probes: dict[str, list[tuple[str, tuple[str, ...]]]] = {
        "transformation": [(f"{head_name(head)} probe", ("fine", head, "accuracy")) for head in heads(results)],
        "class": [
            (f"{head_name(head)}, {word}", ("semantic", head, key))
            for head in heads(results)
            for key, word in (("clean", "unchanged"), ("obfuscated", "transformed"))
        ],
    }
    made = []
    for task, caption in (("transformation", "Style"), ("class", "Class")):
        columns = [Column("backbone", "Backbone", "text"), *(Column(f"k{k}", f"{k}\u2011NN") for k in ks)]
        columns += [Column("probe", heading) for heading, _ in probes[task]]
        rows = []
        for name in ordered(results):
            backbone = results["backbones"][name]
            near = [dig(backbone, "knn", task, str(k)) for k in ks]
            if any(value is not None for value in near):
                rows.append((name, *near, *(dig(backbone, *path) for _, path in probes[task])))
        if rows:
            made.append(Table(f"knn_{task}", caption, tuple(columns), tuple(rows)))
    return made


def shift_table(results: Results) -> Table | None:
    """Backbones down: class accuracy on their own test photographs and on every shift, and mean sensitivity."""
    shifts = list(
        dict.fromkeys(key for name in ordered(results) for key in dig(results, "backbones", name, "shift") or {})
    )
    if not shifts:
        return None
    first = heads(results)[0] if heads(results) else ""
    columns = [
        Column("backbone", "Backbone", "text"),
        Column("clean", "Own photographs", interval=True),
        *(Column("shift", key, interval=True) for key in shifts),
        Column("sensitivity", "Mean sensitivity", "number"),
    ]
    rows = []
    for name in ordered(results):
        backbone = results["backbones"][name]
        if backbone.get("shift"):
            moved = [value for value in (backbone.get("sensitivity") or {}).values() if value is not None]
            clean = scored(dig(backbone, "semantic", first), "clean")
            shifted = [scored(dig(backbone, "shift", key), "accuracy", "ci95") for key in shifts]
            rows.append((name, clean, *shifted, sum(moved) / len(moved) if moved else None))
    return Table("shift", "Accuracy of the class probe on shifted photographs", tuple(columns), tuple(rows))


def comparisons_between(table: Table, names: Sequence[str], head: str) -> Table:
    """The comparisons, by one head, of two different backbones that are both among ``names``."""
    place = [column.name for column in table.columns].index
    a, b, by = place("a"), place("b"), place("head")
    rows = tuple(r for r in table.rows if r[a] != r[b] and r[a] in names and r[b] in names and r[by] == head)
    return Table(table.name, table.caption, table.columns, rows)
