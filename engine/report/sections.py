"""Data for sections of the report page, and figures for papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from substyle.engine.report import curves, extraction, maps, shift
from substyle.engine.report.data import (
    HEADS,
    Column,
    Results,
    Table,
    dig,
    first_head,
    head_name,
    heads,
    ordered,
    real,
    words,
)
from substyle.engine.report.figures import FULL, INK, MUTED, OPEN, Matrix, confusion, panels
from substyle.engine.report.findings import task_score
from substyle.kernels.files import replacing


@dataclass(frozen=True)
class Dot:
    """A value in [0, 1] with its interval; ``shape`` is ``full`` or ``open``."""

    value: float
    low: float | None
    high: float | None
    shape: str
    label: str


@dataclass(frozen=True)
class DotRow:
    """Dots of one backbone."""

    name: str
    control: bool
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class DotPlot:
    """Dots of all backbones for one question, with chance and a legend of shapes."""

    title: str
    rows: tuple[DotRow, ...]
    chance: float | None
    key: tuple[tuple[str, str], ...]


def _plot(results: Results, title: str, task: str, wanted: Sequence[tuple[str, str, str, str]]) -> DotPlot | None:
    """Create a dot plot; ``wanted`` is (head, score, shape, label) of each dot in a row."""
    rows = []
    for name in ordered(results):
        dots = []
        for head, key, shape, label in wanted:
            if score := task_score(dig(results, "backbones", name, task, head), task, key):
                dots.append(Dot(*score, shape, label))
        if dots:
            rows.append(DotRow(name, bool(dig(results, "backbones", name, "control")), tuple(dots)))
    if not rows:
        return None
    used = {dot.label for row in rows for dot in row.dots}
    shapes = tuple((shape, label) for _, _, shape, label in wanted if label in used)
    return DotPlot(title, tuple(rows), dig(results, "chance", task), shapes)


def dot_plots(results: Results) -> list[DotPlot]:
    """Dot plots of style, new styles and substance."""
    tried, first = heads(results), first_head(results)
    each = zip(tried, ("full", "open"), strict=False)
    styles = [(head, "accuracy", shape, f"{head_name(head)} probe") for head, shape in each]
    new = [(first, "seen", "full", "seen in training"), (first, "held_out", "open", "held out")]
    classes = [(first, "clean", "full", "unchanged photographs"), (first, "obfuscated", "open", "transformed")]
    plots = (
        _plot(results, "Style: which transformation?", "fine", styles),
        _plot(results, "New styles: which coarse class?", "coarse", new),
        _plot(results, "Substance: which class?", "semantic", classes),
    )
    return [plot for plot in plots if plot is not None]


@dataclass(frozen=True)
class Bar:
    """Fractions of one backbone that sum to 1.

    Attributes:
        parts: (name, fraction, interval or None).
        edges: intervals of the first part's end and the last part's start, as fractions of the bar.
    """

    name: str
    control: bool
    parts: tuple[tuple[str, float, list[float] | None], ...]
    edges: tuple[tuple[float, float], ...]


def balance_bars(results: Results) -> list[Bar]:
    """Fractions of variants by what the nearest other variant shares."""
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
    """("backbone, head", confusion matrix of the first head) of a task."""
    found = []
    for name in ordered(results):
        for head in heads(results):
            matrix = confusion(dig(results, "backbones", name, task, head, "confusion"))
            if matrix is not None:
                found.append((f"{name}, {head_name(head)}", matrix))
                break
    return found


def knn_beside_probes(results: Results) -> list[Table]:
    """Tables of k-NN accuracy for style and class, next to the accuracy of probes."""
    ks = sorted(
        {int(k) for name in ordered(results) for k in dig(results, "backbones", name, "knn", "transformation") or {}}
    )
    pooled = [head for head in heads(results) if head in HEADS]
    parts = (("clean", "unchanged"), ("obfuscated", "transformed"))
    probes = {
        "transformation": [(f"{head_name(head)} probe", "fine", head, "accuracy") for head in pooled],
        "class": [(f"{head_name(head)}, {word}", "semantic", head, key) for head in pooled for key, word in parts],
    }
    made = []
    for task, caption in (("transformation", "Style"), ("class", "Class")):
        columns = [*words("backbone"), *(Column(f"k{k}", f"{k}\u2011NN") for k in ks)]
        columns += [Column("probe", heading, interval=True) for heading, *_ in probes[task]]
        rows = []
        for name in ordered(results):
            backbone = results["backbones"][name]
            near = [dig(backbone, "knn", task, str(k)) for k in ks]
            if any(value is not None for value in near):
                values = [task_score(dig(backbone, part, head), part, key) for _, part, head, key in probes[task]]
                rows.append((name, *near, *values))
        if rows:
            made.append(Table(f"knn_{task}", caption, tuple(columns), tuple(rows)))
    return made


def comparisons_between(table: Table, names: Sequence[str], head: str) -> Table:
    """Comparisons by one head between different backbones of ``names``."""
    rows = [row for row in table.rows if row[2] == head and row[3] != row[4] and {row[3], row[4]} <= set(names)]
    return replace(table, rows=tuple(rows))


FIGURES = ("overview", "depth", "severity", "complexity", "similarity", "map", "shift", "robustness")


def save_figures(results: Results, folder: Path) -> list[Path]:
    """Write figures as PDF and PNG.

    ``overview``: accuracy of probes; ``depth``: by layer; ``severity``: by severity; ``complexity``: by size of the
    probe; ``similarity``: of backbones; ``map``: of embeddings; ``shift``: loss by sensitivity;
    ``robustness``: class accuracy by sensitivity.

    Figures without numbers are skipped. Returns the files.
    """
    import matplotlib

    style = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "pdf.fonttype": 42,
        "text.parse_math": False,
    }
    wanted: tuple[tuple[Callable[[Results], Any], Callable[[Any], Any]], ...] = (
        (dot_plots, _overview),
        (curves.depth_plots, partial(curves.draw_curves, level="layer")),
        (curves.severity_plots, partial(curves.draw_curves, level="severity", most=4)),
        (extraction.size_plots, extraction.draw_sizes),
        (maps.similarity_maps, maps.draw_similarity),
        (maps.embedding_maps, maps.draw_maps),
        (shift.shift_plots, extraction.draw_sizes),
        (_moved, _robustness),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style):
        made = zip(FIGURES, wanted, strict=True)
        drawn = {name: draw(found) for name, (find, draw) in made if (found := find(results))}
        return [path for name, figure in drawn.items() for path in _save(figure, folder / name)]


_DPI = 200
_LONGEST_PX = 1 << 15  # matplotlib refuses 2^16; a row for each of many backbones is that high
_MARGIN_IN = 0.1


def _save(figure: Any, stem: Path) -> list[Path]:  # noqa: ANN401 (matplotlib ships no types)
    """Save a figure as PDF and PNG, cut to what is drawn; layout, which takes most of the time, is computed once."""
    figure.set_dpi(_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    paths = []
    cut = figure.get_tightbbox().padded(_MARGIN_IN)
    dpi = min(_DPI, _LONGEST_PX / max(cut.size))
    # no date, so that equal results give equal files
    for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        paths.append(stem.with_name(f"{stem.name}.{ending}"))
        with replacing(paths[-1]) as file:
            figure.savefig(file, format=ending, dpi=dpi, bbox_inches=cut, metadata=metadata)
    return paths


def _overview(plots: list[DotPlot]) -> Any:  # noqa: ANN401 (matplotlib ships no types)
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation

    names = list(dict.fromkeys(row.name for plot in plots for row in plot.rows))
    size = (2.4 * len(plots) + 0.3 + 0.065 * max(map(len, names)), 0.26 * len(names) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(plots), sharey=True, squeeze=False)[0]
    for plot, axis in zip(plots, axes, strict=True):
        for row in plot.rows:
            y = names.index(row.name)
            for dot in row.dots:
                mark = _mark(dot.shape)
                if dot.low is not None and dot.high is not None:
                    ends = [100 * dot.low, 100 * dot.high]
                    axis.plot(ends, [y, y], color=mark["mec"], lw=1.2, solid_capstyle="butt")
                axis.plot(100 * dot.value, y, zorder=3, **mark)
        if plot.chance is not None:
            axis.axvline(100 * plot.chance, color=MUTED, lw=0.8, ls=(0, (2, 2)))
        axis.set(xlim=(0, 100), title=plot.title, xlabel="accuracy, %")
        marks = [Line2D([], [], label=label, **_mark(shape)) for shape, label in plot.key]
        axis.legend(
            handles=marks,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            bbox_transform=axis.transAxes + ScaledTranslation(0, -0.36, figure.dpi_scale_trans),
            ncols=2,
            columnspacing=0.8,
            handletextpad=0.1,
            frameon=False,
            fontsize=7,
        )
        axis.title.set_size(8)
        axis.grid(axis="x", color="#e3e6ea", lw=0.6)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), list(names))
    axes[0].invert_yaxis()
    return figure


def _mark(shape: str) -> dict[str, Any]:
    """Style of a dot."""
    colour = FULL if shape == "full" else OPEN
    face = colour if shape == "full" else "white"
    return {"ls": "", "marker": "o", "ms": 4.5, "mec": colour, "mfc": face, "mew": 1.1}


def _moved(results: Results) -> list[tuple[str, list[tuple[float, float, str]]]]:
    """(backbone, [(sensitivity, class accuracy, transformation)]) of backbones that have both."""
    shown = []
    for name in real(results) or ordered(results):
        semantic = dig(results, "backbones", name, "semantic") or {}
        accuracy = next((dig(scores, "by_transformation") for scores in semantic.values()), None) or {}
        moved = dig(results, "backbones", name, "sensitivity") or {}
        pairs = [(moved[t], accuracy[t], t) for t in moved if moved[t] is not None and accuracy.get(t) is not None]
        if pairs:
            shown.append((name, pairs))
    return shown


def _robustness(shown: Sequence[tuple[str, list[tuple[float, float, str]]]]) -> Any:  # noqa: ANN401
    figure, axes = panels(len(shown), 3, 2.5, 2.4, sharex=True, sharey=True)
    for axis, (name, pairs) in zip(axes, shown, strict=True):
        axis.scatter([p[0] for p in pairs], [100 * p[1] for p in pairs], s=12, color=FULL, linewidths=0)
        x, y, lowest = min(pairs, key=lambda pair: pair[1])
        axis.annotate(lowest, (x, 100 * y), (4, -7), textcoords="offset points", fontsize=6, color=MUTED)
        axis.set(title=name, ylim=(0, 100))
        axis.title.set_size(7)
    figure.supxlabel("sensitivity (1 − centred cosine to the unchanged photograph)", fontsize=8)
    figure.supylabel("class accuracy, %", fontsize=8)
    return figure
