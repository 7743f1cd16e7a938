"""The report: a self-contained HTML page, tables as CSV and LaTeX, and figures."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from substyle import files
from substyle.engine.report import findings
from substyle.engine.report.data import (
    Column,
    Table,
    dagger,
    head_name,
    in_words,
    minus,
    parameter_name,
    show,
    signs,
    unit_name,
)
from substyle.engine.report.figures import draw_plots
from substyle.engine.report.section import Answer, Data, Pictures, Plots, Section, Strip, blocks_of
from substyle.engine.results.model import ResultsDocument
from substyle.errors import SubstyleError

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")  # by content; Pillow would start Ghostscript for EPS under any name
_SIDE = 160  # thumbnail side in pixels
_MOST = 4  # maximum photographs in the gallery
_PICTURES = 120  # maximum pictures in the gallery, of about 10 kB each, unless the first photograph has more variants
_PLAIN = re.compile(r"[\w.:@-]+")
_ANSWERS = 3  # at the top of the page
_MANY, _SMALL_SIDE = 60, 120  # thumbnail side of a photograph with more pictures; about what the page shows


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and its transformation."""

    transformation: str
    uri: str


def read_gallery(path: Path | None, transformations: Sequence[str]) -> list[list[Picture]]:
    """Load pictures of variants, in suite order.

    Args:
        path: a folder of ``<transformation>.png`` (jpg, webp) of one photograph, or a folder of such folders. None or a
            path that is no folder gives no gallery.
        transformations: names in display order.

    Returns:
        one list per photograph: at most four, and at most 120 pictures unless the first photograph has more.

    Raises:
        SubstyleError: a file is not a picture (PNG, JPEG or WebP), or a link.
    """
    if path is None or not path.is_dir():
        return []
    folders = ["", *sorted(f"{folder.name}/" for folder in path.iterdir() if folder.is_dir())]
    photographs = []
    for folder in folders:
        listed = sorted((path / folder).iterdir())
        found = {file.stem: folder + file.name for file in listed if file.suffix.lower() in _ENDINGS}
        photographs.append([(name, found[name]) for name in transformations if name in found])
    shown: list[list[Picture]] = []
    for photograph in filter(None, photographs):
        if len(shown) == _MOST or (shown and sum(map(len, shown)) + len(photograph) > _PICTURES):
            break
        side = _SIDE if len(photograph) <= _MANY else _SMALL_SIDE
        shown.append([Picture(name, _uri(path, file, side)) for name, file in photograph])
    return shown


def _uri(folder: Path, name: str, side: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(folder, name, side)).decode("ascii")


def thumbnail(folder: Path, name: str, side: int = _SIDE) -> bytes:
    """Draw a picture of a folder as a JPEG of at most ``side`` pixels.

    Raises:
        SubstyleError: it is not a picture (PNG, JPEG or WebP), or a link.
    """
    from PIL import Image

    try:
        with files.open_inside(folder, name) as file, Image.open(file, formats=_FORMATS) as opened:
            picture = opened.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise SubstyleError(f"{folder / name}: not a picture in PNG, JPEG or WebP ({error})") from error
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=82, optimize=True)
    return out.getvalue()


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"−": r"$-$", "–": "--", "†": r"$\dagger$", "\n": " "}
)


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write tables as CSV and LaTeX; returns the files.

    In CSV an interval column ``x`` becomes ``x``, ``x_low`` and ``x_high``. Fractions are in per cent in LaTeX
    only. Confusion matrices are too long for LaTeX and are skipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    latex = [table for table in tables if not table.name.startswith("confusion")]
    return [_csv(table, folder) for table in tables] + [_latex(table, folder) for table in latex]


def flat(table: Table) -> tuple[list[tuple[str, str]], list[list[Any]]]:
    """Expand interval columns to three. Returns (name, kind) of each column, and the rows."""
    columns: list[tuple[str, str]] = []
    for column in table.columns:
        columns.append((column.name, column.kind))
        if column.interval:
            columns += [(f"{column.name}_low", column.kind), (f"{column.name}_high", column.kind)]
    rows = []
    for row in table.rows:
        cells: list[Any] = []
        for column, value in zip(table.columns, row, strict=True):
            cells += ([None] * 3 if value is None else value) if column.interval else [value]
        rows.append(cells)
    return columns, rows


def cell_text(value: Any, column: Column) -> str:  # noqa: ANN401 (a cell holds anything plain)
    """Format a cell, with its interval in brackets, and † if its probe has not converged."""
    if not column.interval or value is None:
        return show(value, column.kind)
    middle, low, high = value
    interval = "" if low is None else f" [{show(low, column.kind)}, {show(high, column.kind)}]"
    return show(middle, column.kind) + interval + dagger(value)


def latex_escape(text: str) -> str:
    """Escape LaTeX's special characters."""
    return text.translate(_LATEX)


def _csv(table: Table, folder: Path) -> Path:
    path = folder / f"{table.name}.csv"
    columns, rows = flat(table)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[name for name, _ in columns], *rows])
    return files.write(path, text.getvalue())


def _latex(table: Table, folder: Path) -> Path:
    path = folder / f"{table.name}.tex"
    aligned = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    head = " & ".join(latex_escape(column.heading) for column in table.columns)
    body = [
        " & ".join(latex_escape(cell_text(value, column)) for value, column in zip(row, table.columns, strict=True))
        for row in table.rows
    ]
    lines = [
        "% requires \\usepackage{booktabs}; accuracies are in per cent",
        f"% {table.caption}",
        f"\\begin{{tabular}}{{{aligned}}}",
        "\\toprule",
        f"{head} \\\\",
        "\\midrule",
        *(f"{line} \\\\" for line in body),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return files.write(path, "\n".join(lines) + "\n")


TEMPLATES = Path(__file__).with_name("templates")


@cache
def environment() -> Environment:
    """The Jinja environment, with autoescape and strict variables; it keeps compiled templates."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "show": show,
        "dagger": dagger,
        "soft": soft,
        "plain": plain,
        "brief": brief,
        "rate": rate,
        "head_name": head_name,
        "in_words": in_words,
        "signs": signs,
        "parameter_name": parameter_name,
        "unit_name": unit_name,
    }
    made.globals["style"] = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return made


def write_page(path: Path, template: str, context: dict[str, Any]) -> Path:
    """Render a template to a file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return files.write(path, environment().get_template(template).render(context))


def soft(name: object) -> Markup:
    """Escape a name and allow line breaks after ``: _ - / .`` and within very long words, not in numbers."""
    pieces = re.findall(r"\S{0,19}?(?:[:_\-/]|\.(?!\d))\s*|\S{1,20}\s*|\s+", str(name))
    return Markup("<wbr>").join(escape(piece) for piece in pieces)


def plain(value: object) -> str:
    """Format any value as short text, for lists of settings."""
    if isinstance(value, (int, float)):
        return minus(f"{value:.6g}" if isinstance(value, float) else str(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return "–" if value is None else str(value)


def brief(value: float | None) -> str:
    """Format a measured number with three significant digits, or as a whole number from 100."""
    return "–" if value is None else minus(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}")


def rate(per_s: float | None) -> str:
    """Format items per second, or below one per second the seconds of each."""
    return f"{brief(1 / per_s)} s each" if per_s and 0 < per_s < 1 else brief(per_s)


@dataclass(frozen=True)
class ReportFiles:
    """Files of a report: page, tables and figures."""

    html: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]


def write_report(
    results: ResultsDocument,
    out_dir: Path,
    sections: Sequence[Section],
    *,
    gallery: Path | None = None,
    pictures: Path | None = None,
) -> ReportFiles:
    """Write ``report.html``, ``tables/*.{csv,tex}`` and ``figures/*.{pdf,png,svg}``.

    The page is self-contained and has no scripts.

    Args:
        results: results.json, with labels in place of names of backbones.
        out_dir: output folder, created if missing.
        sections: what the page shows besides findings and facts.
        gallery: pictures of variants; see :func:`substyle.engine.report.page.read_gallery`.
        pictures: folder of the pictures of sections; default: ``out_dir``.

    Raises:
        SubstyleError: a gallery file that is not a picture.
    """
    context = _context(results, sections, gallery, pictures or out_dir)
    plots = [answer.plots for _, answer in context["answers"]]
    context["plots"], figures = draw_plots([*plots, *plots_of(sections)], out_dir / "figures")
    return ReportFiles(
        html=write_page(out_dir / "report.html", "report.html.j2", context),
        tables=tuple(write_tables(tables_of(sections), out_dir / "tables")),
        figures=tuple(figures),
    )


def tables_of(sections: Sequence[Section]) -> list[Table]:
    """Tables of a report that have rows and are written to files."""
    blocks = [block for section in sections for block in blocks_of(section)]
    found = (block.table for block in blocks if isinstance(block, Data) and block.saved)
    return [table for table in found if table.rows]


def plots_of(sections: Sequence[Section]) -> list[Plots]:
    """Plots of a report."""
    blocks = (block.plots if isinstance(block, Strip) else block for each in sections for block in blocks_of(each))
    return [block for block in blocks if isinstance(block, Plots)]


def answers_of(sections: Sequence[Section]) -> list[tuple[Section, Answer]]:
    """The answers at the top of a page, and the section of each."""
    return [(section, section.answer) for section in sections if section.answer][:_ANSWERS]


def _context(
    results: ResultsDocument, sections: Sequence[Section], gallery: Path | None, pictures: Path
) -> dict[str, Any]:
    """Variables of the template."""
    files_of = [
        file
        for section in sections
        for block in blocks_of(section)
        if isinstance(block, Pictures)
        for file, _, _ in block.pictures
        if file
    ]
    ordered, real = results.ordered(), results.real()
    variants = read_gallery(gallery, [row.name for row in results.transformations])
    return {
        "results": results,
        "sections": sections,
        "answers": answers_of(sections),
        "drawn": results.drawn(),
        # by name, which a rule of CSS repeats
        "picks": {row.name: f"t{i}" for i, row in enumerate(results.transformations) if _PLAIN.fullmatch(row.name)},
        "ordered": ordered,
        "real": real,
        "controls": [name for name in ordered if name not in real],
        "speed": results.throughput.model_dump(exclude_unset=True) if results.throughput else {},
        "sampled": next((backbone.sampled for backbone in ordered.values()), None),
        "findings": findings.findings(results),
        "portraits": [(name, findings.portrait(results, name)) for name in real],
        "gallery": variants,
        # classes of the style sheet with the pictures of the first photograph, which the page shows more than once
        "thumbs": {picture.transformation: f"g{i}" for i, picture in enumerate(variants[0])} if variants else {},
        "uris": {file: _uri(pictures, file, _SIDE) for file in files_of if files.inside(pictures, file).is_file()},
    }
