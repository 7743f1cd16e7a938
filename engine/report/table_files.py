"""Tables as CSV, JSON, Parquet and LaTeX."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from substyle.engine.report.cells import Column, Table, show

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": r"$-$",
    "–": "--",
}


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write every table as CSV, JSON, Parquet and LaTeX; returns the files written.

    In data files an interval column ``x`` becomes ``x``, ``x_low`` and ``x_high``; shares stay shares of 1 there and
    are in per cent in LaTeX. Confusion matrices are too long for LaTeX and have none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [write(table, folder) for table in tables for write in (_csv, _json, _parquet)]
    return written + [_latex(table, folder) for table in tables if not table.name.startswith("confusion")]


def flat(table: Table) -> tuple[list[tuple[str, str]], list[list[Any]]]:
    """The table with every interval column spread over three: (name, kind) of each column, and the rows."""
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
    """A cell as people read it, with its interval in brackets."""
    if not column.interval or value is None:
        return show(value, column.kind)
    middle, low, high = value
    interval = "" if low is None else f" [{show(low, column.kind)}, {show(high, column.kind)}]"
    return show(middle, column.kind) + interval


def latex_escape(text: str) -> str:
    """Text with LaTeX's special characters made harmless."""
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))


def _csv(table: Table, folder: Path) -> Path:
    path = folder / f"{table.name}.csv"
    columns, rows = flat(table)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([name for name, _ in columns])
        writer.writerows(rows)
    return path


def _json(table: Table, folder: Path) -> Path:
    path = folder / f"{table.name}.json"
    columns, rows = flat(table)
    records = [{name: value for (name, _), value in zip(columns, row, strict=True)} for row in rows]
    path.write_text(json.dumps({"caption": table.caption, "rows": records}, indent=1) + "\n", encoding="utf-8")
    return path


def _parquet(table: Table, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"{table.name}.parquet"
    types = {"text": pa.string(), "count": pa.int64()}
    columns, rows = flat(table)
    arrays = {
        name: pa.array([row[i] for row in rows], type=types.get(kind, pa.float64()))
        for i, (name, kind) in enumerate(columns)
    }
    pq.write_table(pa.table(arrays), path)
    return path


def _latex(table: Table, folder: Path) -> Path:
    path = folder / f"{table.name}.tex"
    aligned = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    head = " & ".join(latex_escape(column.heading) for column in table.columns)
    body = [
        " & ".join(latex_escape(cell_text(value, column)) for value, column in zip(row, table.columns, strict=True))
        for row in table.rows
    ]
    lines = [
        "% needs \\usepackage{booktabs}; shares are in per cent",
        f"% {table.caption}",
        f"\\begin{{tabular}}{{{aligned}}}",
        "\\toprule",
        f"{head} \\\\",
        "\\midrule",
        *(f"{line} \\\\" for line in body),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
