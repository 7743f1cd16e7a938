"""Plots, drawn once by matplotlib: as SVG of each on the page, and all of a block as PDF, PNG and SVG for papers."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from substyle.engine.report.section import Plots
from substyle.files import replacing

INK, MUTED, GRID, PAPER = "#1b1f24", "#57606a", "#eceff2", "#ffffff"
FULL, OPEN, THIRD = "#1f6fb5", "#c8561b", "#9aa3ad"
HEAT = (31 / 255, 111 / 255, 181 / 255)
_VARIABLES = {
    **{INK: "var(--ink)", MUTED: "var(--soft)", GRID: "var(--faint)", PAPER: "var(--paper)"},
    **{FULL: "var(--full)", OPEN: "var(--open)", THIRD: "var(--third)"},
}
"""Variables of style.css that replace colours on the page, which may be dark."""
_STYLE = {
    "font.size": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": THIRD,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "lines.solid_capstyle": "butt",
    "path.simplify": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "legend.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
}


class Drawing(NamedTuple):
    """A plot on the page: its SVG, and its width in pixels."""

    name: str
    caption: str
    svg: Markup
    width: int


def wrapped(name: str) -> str:
    """A name in lines of at most 36 characters, without what fonts cannot show."""
    return textwrap.fill(name.encode(errors="replace").decode(), 36)


def tip(artist: Any, text: str, transformation: str = "") -> None:  # noqa: ANN401 (matplotlib ships no types)
    """Show a text on the page where the pointer is on an artist, and mark it where the page highlights its
    transformation."""
    artist.set_gid(_TIP + transformation + _OF + text)


_TIP, _OF = "tip:", "\u2063"  # an invisible separator


def rows_height(names: Sequence[str]) -> float:
    """Height of `name_rows` in inches."""
    return 0.1 + len(names) * max([0.25, *(0.13 * (1 + wrapped(name).count("\n")) for name in names)])


def name_rows(axis: Any, names: Sequence[str], values: Sequence[str]) -> None:  # noqa: ANN401
    """Make rows from 0 to 100 per cent, from top to bottom, of names and values as text."""
    axis.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.5))
    axis.set_yticks(range(len(names)), [wrapped(name) for name in names])
    for y, text in enumerate(values):
        axis.text(1.03, y, text, transform=axis.get_yaxis_transform(), va="center", color=MUTED)
    axis.grid(axis="x")


def legend_below(axis: Any) -> None:  # noqa: ANN401
    """Add a legend below an axis and its label."""
    from matplotlib.transforms import ScaledTranslation

    below = axis.transAxes + ScaledTranslation(0, -0.36, axis.figure.dpi_scale_trans)
    axis.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, ncols=2, borderaxespad=0)


def draw_heat(axis: Any, value_YX: ArrayLike, *, most: float = 1.0, aspect: str = "equal") -> None:  # noqa: ANN401
    """Draw values in [0, 1] as opacity, of at most ``most``, of one colour."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("heat", [(*HEAT, 0.0), (*HEAT, most)])
    axis.imshow(value_YX, cmap=colours, vmin=0, vmax=1, interpolation="none", aspect=aspect)
    axis.spines[:].set(visible=True, color=GRID)


def draw_matrix(
    axis: Any,  # noqa: ANN401
    names: Sequence[str],
    value_CC: NDArray[np.float64],
    cells: Sequence[Sequence[str]] = (),
) -> None:
    """Draw values in [0, 1] as opacity of one colour, and the text of each cell, if any."""
    draw_heat(axis, value_CC)
    axis.set_xticks(range(len(names)), [wrapped(name) for name in names], rotation=90, size=7)
    axis.set_yticks(range(len(names)), [wrapped(name) for name in names], size=7)
    axis.xaxis.tick_top()
    for i, row in enumerate(cells):
        for j, text in enumerate(row):
            axis.text(j, i, text, ha="center", va="center")


def draw_plots(blocks: Sequence[Plots], folder: Path) -> tuple[dict[Plots, list[Drawing]], list[Path]]:
    """Draw the plots of all blocks. Returns the pictures of each for the page, and the files of those with a name."""
    import matplotlib

    pictures, files = {}, []
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page has more fonts
        for at, block in enumerate(blocks):
            figure, axes, pictures[block] = _draw(block, f"p{at}")
            if block.name:
                _arrange(figure, axes, block)
                folder.mkdir(parents=True, exist_ok=True)
                files += _save(figure, folder / block.name)
    return pictures, files


def _draw(block: Plots, salt: str) -> tuple[Any, list[Any], list[Drawing]]:
    """The figure of a block, its axes, and the picture of each panel for the page, after that of their legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=block.size)
    axes = [figure.add_axes((0, 0, 1, 1), label=str(at)) for at in range(len(block.panels))]
    labelled: dict[str, Any] = {}
    for axis, panel in zip(axes, block.panels, strict=True):
        panel.draw(axis)
        axis.patch.set_visible(False)
        if axis.get_legend() is None:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                labelled.setdefault(label, handle)
    for each in figure.get_children():
        each.set_visible(False)
    pictures = []
    if labelled:
        columns = max(1, min(len(labelled), 70 // (6 + max(map(len, labelled)))))
        where = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": columns}
        key = figure.legend(labelled.values(), map(wrapped, labelled), **where)
        pictures.append(Drawing("", "", *_svg(figure, key, f"{salt}-key", "Legend")))
        key.set_visible(False)
    for at, (axis, panel) in enumerate(zip(axes, block.panels, strict=True)):
        axis.set_visible(True)
        text = f"{panel.name}: {panel.spoken or panel.caption}"
        pictures.append(Drawing(panel.name, panel.caption, *_svg(figure, axis, f"{salt}-{at}", text)))
        axis.set_visible(False)
    for each in figure.get_children():
        each.set_visible(True)
    return figure, axes, pictures


def _arrange(figure: Any, axes: Sequence[Any], block: Plots) -> None:  # noqa: ANN401
    """Place all panels of a block, which lie upon each other, in rows; a panel keeps its size."""
    across = min(len(axes), block.across)
    down = -(-len(axes) // across)
    for at, (axis, panel) in enumerate(zip(axes, block.panels, strict=True)):
        axis.set_title(wrapped(panel.name))
        if block.shared and at % across:
            axis.tick_params(labelleft=False)
            axis.set_ylabel("")
    boxes = [_box(figure, axis) for axis in axes]
    below, above = -min(box.y0 for box in boxes), max(box.y1 for box in boxes)
    columns = [boxes[at::across] for at in range(across)]
    left = [-min(box.x0 for box in column) for column in columns]
    pitch = [before + max(box.x1 for box in column) + _GAP_IN for before, column in zip(left, columns, strict=True)]
    height = below + above + _GAP_IN
    whole = sum(pitch), height * down
    figure.set_size_inches(whole)
    for at, axis in enumerate(axes):
        x = sum(pitch[: at % across]) + left[at % across]
        y = height * (down - 1 - at // across) + below
        axis.set_position((x / whole[0], y / whole[1], block.size[0] / whole[0], block.size[1] / whole[1]))


_GAP_IN = 0.1


def _box(figure: Any, artist: Any) -> Any:  # noqa: ANN401
    """What an artist covers, in inches."""
    return artist.get_tightbbox().transformed(figure.dpi_scale_trans.inverted())


_PX = 1.5  # per point: text of 12 pixels
_COORDINATES = re.compile(r"\s*([A-Za-z])\s*|(\.\d\d)\d+|\s+$")


def _svg(figure: Any, artist: Any, salt: str, label: str) -> tuple[Markup, int]:  # noqa: ANN401
    """The part of a figure that an artist covers, as SVG for a page, and its width in pixels.

    Ids are unique on the page if the salt is. Text and colours are those of the page; what `tip` says is a title,
    which browsers show at the pointer.
    """
    import matplotlib

    file = io.StringIO()
    box = _box(figure, artist).padded(0.06)
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(file, format="svg", bbox_inches=box, transparent=True, metadata={"Date": None, "Creator": None})
    # without characters that XML does not know, and the namespace, which HTML does not need
    text = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", file.getvalue())
    svg = ElementTree.fromstring(text.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1))
    for parent in svg.iter():
        for child in list(parent):
            if child.tag in ("metadata", "style", "clipPath") or (child.tag == "g" and not len(child)):
                parent.remove(child)
    for each in svg.iter():
        _for_page(each)
    size = svg.attrib["viewBox"]
    svg.attrib = {"viewBox": size, "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(svg, encoding="unicode")), round(_PX * float(size.split()[2]))


def _for_page(element: ElementTree.Element) -> None:
    """Make an element of matplotlib's SVG part of a page of HTML: shorter, without fonts, and with titles."""
    element.text, element.tail = (element.text or "").strip("\n "), ""
    given, element.attrib = element.attrib, {}
    for name, value in given.items():
        if name == "style":
            style = re.sub(r"font-family: [^;]*;? ?", "", value)
            element.set(name, re.sub(r"#\w{6}", lambda match: _VARIABLES.get(match[0], match[0]), style))
        elif name == "id" and element.tag == "g":
            if value.startswith(_TIP):
                title = ElementTree.Element("title")
                transformation, _, title.text = value.removeprefix(_TIP).partition(_OF)
                element.insert(0, title)
                if transformation:
                    element.set("data-t", transformation)
        elif name.endswith("}href"):
            element.set("href", value.replace(" ", ""))
        elif name in ("d", "x", "y"):
            element.set(name, _COORDINATES.sub(r"\1\2", value))
        elif name != "clip-path" and not value.startswith("rotate(-0 "):
            element.set(name, value)


_DPI = 200
_LONGEST_PX = 1 << 15  # matplotlib refuses 2^16; a row for each of many backbones is that high
_MARGIN_IN = 0.1


def _save(figure: Any, stem: Path) -> list[Path]:  # noqa: ANN401 (matplotlib ships no types)
    """Save a figure as PDF, PNG and SVG, cut to what is drawn."""
    import matplotlib

    cut = figure.get_tightbbox().padded(_MARGIN_IN)
    dpi = min(_DPI, _LONGEST_PX / max(cut.size))
    paths = []
    # no date, so that equal results give equal files
    none = {"pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    for ending, metadata in none.items():
        paths.append(stem.with_name(f"{stem.name}.{ending}"))
        with replacing(paths[-1]) as file, matplotlib.rc_context({"svg.hashsalt": stem.name}):
            figure.savefig(file, format=ending, dpi=dpi, bbox_inches=cut, metadata=metadata)
    return paths
