"""Figures for papers and slides: PDF and PNG by matplotlib, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from substyle.engine.report.results import Results, dig, ordered, real
from substyle.engine.report.sections import DotPlot, dot_plots

_INK, _MUTED, _FULL, _OPEN = "#1b1f24", "#7a828c", "#1f6fb5", "#c8561b"


def save_figures(results: Results, folder: Path) -> list[Path]:
    """Write ``overview`` (what probes know) and ``robustness`` (how far a transformation moves an embedding against
    what it costs the class probe), each where its numbers exist; returns the files written."""
    import matplotlib

    drawn: dict[str, Any] = {}
    style = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _MUTED,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "pdf.fonttype": 42,
    }
    with matplotlib.rc_context(style):
        plots = dot_plots(results)
        if plots:
            drawn["overview"] = _overview(plots)
        robustness = _robustness(results)
        if robustness is not None:
            drawn["robustness"] = robustness
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, figure in drawn.items():
            for ending in ("pdf", "png"):
                path = folder / f"{name}.{ending}"
                # no date inside: equal results give equal files
                metadata = {"CreationDate": None} if ending == "pdf" else {"Software": None}
                figure.savefig(path, dpi=200, bbox_inches="tight", metadata=metadata)
                paths.append(path)
    return paths


def _verbatim(name: str) -> str:
    """A name that matplotlib does not read as mathematics."""
    return name.replace("$", r"\$")


def _overview(plots: list[DotPlot]) -> Any:  # noqa: ANN401 (matplotlib ships no types)
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    names = list(dict.fromkeys(row.name for plot in plots for row in plot.rows))
    size = (2.4 * len(plots) + 0.3 + 0.065 * max(map(len, names)), 0.26 * len(names) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(plots), sharey=True, squeeze=False)[0]
    for plot, axis in zip(plots, axes, strict=True):
        for row in plot.rows:
            y = names.index(row.name)
            for dot in row.dots:
                colour = _FULL if dot.shape == "full" else _OPEN
                if dot.low is not None and dot.high is not None:
                    axis.plot([100 * dot.low, 100 * dot.high], [y, y], color=colour, lw=1.2, solid_capstyle="butt")
                face = colour if dot.shape == "full" else "white"
                axis.plot(100 * dot.value, y, "o", ms=4.5, mec=colour, mfc=face, mew=1.1, zorder=3)
        if plot.chance is not None:
            axis.axvline(100 * plot.chance, color=_MUTED, lw=0.8, ls=(0, (2, 2)))
        axis.set(xlim=(0, 100), title=plot.title, xlabel="accuracy, %")
        marks = [_mark(shape, label) for shape, label in plot.key]
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
    axes[0].set_yticks(range(len(names)), [_verbatim(name) for name in names])
    axes[0].invert_yaxis()
    return figure


def _mark(shape: str, label: str) -> Any:  # noqa: ANN401 (matplotlib ships no types)
    from matplotlib.lines import Line2D

    colour = _FULL if shape == "full" else _OPEN
    face = colour if shape == "full" else "white"
    return Line2D([], [], ls="", marker="o", ms=4.5, mec=colour, mfc=face, mew=1.1, label=label)


def _robustness(results: Results) -> Any:  # noqa: ANN401 (matplotlib ships no types)
    from matplotlib.figure import Figure

    shown = []
    for name in real(results) or ordered(results):
        semantic = dig(results, "backbones", name, "semantic") or {}
        accuracy = next((dig(scores, "by_transformation") for scores in semantic.values()), None) or {}
        moved = dig(results, "backbones", name, "sensitivity") or {}
        pairs = [(moved[t], accuracy[t], t) for t in moved if moved[t] is not None and accuracy.get(t) is not None]
        if pairs:
            shown.append((name, pairs))
    if not shown:
        return None
    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    figure = Figure(figsize=(2.5 * across, 2.4 * down), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (name, pairs) in zip(axes, shown, strict=False):
        axis.scatter([p[0] for p in pairs], [100 * p[1] for p in pairs], s=12, color=_FULL, linewidths=0)
        x, y, lowest = min(pairs, key=lambda pair: pair[1])
        axis.annotate(_verbatim(lowest), (x, 100 * y), (4, -7), textcoords="offset points", fontsize=6, color=_MUTED)
        axis.set(title=_verbatim(name), ylim=(0, 100))
        axis.title.set_size(7)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    figure.supxlabel("sensitivity (1 − centred cosine to the unchanged photograph)", fontsize=8)
    figure.supylabel("class accuracy, %", fontsize=8)
    return figure
