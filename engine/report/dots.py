"""Dot plots: scores of backbones for one question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from substyle.engine.report.data import Scored, head_name, scored, show, show_scored
from substyle.engine.report.figures import FULL, MUTED, OPEN, PAPER, THIRD, legend_below, name_rows, rows_height, tip
from substyle.engine.report.findings import unseen
from substyle.engine.report.section import Panel, Plots
from substyle.engine.results.model import ResultsDocument


@dataclass(frozen=True)
class DotRow:
    """Scores of one backbone, with a label each; of two, the second is drawn hollow."""

    name: str
    control: bool
    dots: tuple[tuple[str, Scored], ...]

    @property
    def text(self) -> str:
        """The values."""
        return " / ".join(show(value) for _, (value, _, _) in self.dots)


def dot_plots(results: ResultsDocument) -> Plots | None:
    """Dot plots of transformations, held-out ones and classes; None without scores."""
    titles = {"transformation": "Which transformation?", "kind": "Held-out transformations: which kind?"}
    names = list(results.ordered())
    tasks = (titles | {"class": "Which class?"}).items()
    panels = tuple(panel for task, title in tasks if (panel := dot_panel(results, task, names, title)))
    size = (2.4, rows_height(names))
    return Plots("overview", panels, size, shared=True, tables=("overview",)) if panels else None


def dot_panel(results: ResultsDocument, task: str, names: Iterable[str], title: str = "") -> Panel | None:
    """Dot plot of a task, a row for each of the given backbones; None without scores."""
    first = results.first_head()
    held_out, key = unseen(results, first)
    unseen_label = "held out" if held_out == "kind" else "each held out in turn"
    wanted = {
        "transformation": [
            (f"{head_name(head)} probe", "transformation", head, "accuracy") for head in results.heads()[:2]
        ],
        "kind": [("seen in training", "kind", first, "seen"), (unseen_label, held_out, first, key)],
        "class": [
            ("original photographs", "class", first, "original"),
            ("transformed", "class", first, "transformed"),
        ],
    }[task]
    rows = []
    for name in names:
        backbone = results.backbones[name]
        scores = [(label, scored(backbone.probe(own, head), key)) for label, own, head, key in wanted]
        dots = tuple((label, score) for label, score in scores if score)
        rows.append(DotRow(name, bool(backbone.control), dots))
    if not any(row.dots for row in rows):
        return None
    count = (results.splits or {}).get("test")
    n = f", n = {count:,} photographs" if count else ""
    draw = partial(_draw, rows=rows, labels=[label for label, *_ in wanted], chance=results.chance_of(task), n=n)
    return Panel(title, draw, spoken=", ".join(f"{row.name} {row.text}" for row in rows if row.dots))


def _draw(axis: Any, rows: Sequence[DotRow], labels: Sequence[str], chance: float | None, n: str) -> None:  # noqa: ANN401 (matplotlib ships no types)
    name_rows(axis, [row.name for row in rows], [row.text for row in rows])
    for label in labels:
        if any(label == own for row in rows for own, _ in row.dots):
            axis.plot([], [], "o", label=label, **_mark(labels.index(label) == 0, control=False))
    for y, row in enumerate(rows):
        for label, score in reversed(row.dots):
            value, low, high = score
            mark = _mark(labels.index(label) == 0, control=row.control)
            if low is not None and high is not None:
                axis.plot([100 * low, 100 * high], [y, y], color=mark["mec"], lw=1.5)
            (dot,) = axis.plot(100 * value, y, "o", **mark)
            tip(dot, f"{row.name}, {label}: {show_scored(score)}{n}")
    if chance is not None:
        axis.axvline(100 * chance, color=MUTED, lw=0.8, ls=(0, (2, 2)), label=f"chance {show(chance)}")
    axis.set_xlabel("accuracy, %")
    legend_below(axis)


def _mark(full: bool, *, control: bool) -> dict[str, Any]:
    """Style of a dot."""
    colour = THIRD if control else FULL if full else OPEN
    face = colour if full else PAPER
    return {"ms": 5, "mec": colour, "mfc": face, "mew": 1.2, "zorder": 3, "clip_on": False}
