"""Tables by transformation as heat tables of the page: a column per backbone, coloured by value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from substyle.engine.report.data import Kind, Table, show, show_interval
from substyle.engine.report.tables import by_transformation, confused_with, geometry
from substyle.engine.results.model import ProbeScores, ResultsDocument


@dataclass(frozen=True)
class Cell:
    """A cell of a heat table: text, small text below it, heat in [0, 1] (None: no colour), and what strips add."""

    text: str
    small: str
    heat: float | None
    note: str = ""


@dataclass(frozen=True)
class HeatTable:
    """A table of transformations (rows, grouped by kind) and backbones (columns), coloured by value.

    Attributes:
        columns: (backbone, whether it is a control).
        groups: (kind, rows of (transformation, cells)).
        footer: (heading, cells) below all groups.
        headings: of groups and rows.
    """

    columns: tuple[tuple[str, bool], ...]
    groups: tuple[tuple[str, tuple[tuple[str, tuple[Cell, ...]], ...]], ...]
    footer: tuple[tuple[str, tuple[Cell, ...]], ...] = ()
    headings: tuple[str, str] = ("Group", "Transformation")

    @property
    def rows(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """(transformation, cells) of all groups."""
        return [row for _, rows in self.groups for row in rows]

    def by_column(self) -> list[tuple[Cell, ...]]:
        """Cells of each backbone."""
        return list(zip(*(cells for _, cells in self.rows), strict=True))

    @staticmethod
    def of(results: ResultsDocument, names: Iterable[str], rows: Iterable[tuple[str, str, list[Cell]]]) -> HeatTable:
        """A table of backbones from rows of (group, heading, cells), in the order in which groups come first."""
        groups: dict[str, list[tuple[str, tuple[Cell, ...]]]] = {}
        for group, heading, cells in rows:
            groups.setdefault(group, []).append((heading, tuple(cells)))
        columns = tuple((name, bool(results.backbones[name].control)) for name in names)
        return HeatTable(columns, tuple((group, tuple(own)) for group, own in groups.items()))


def heat_table(
    results: ResultsDocument, table: Table, name: str, *, small: str = "", role: str = ""
) -> HeatTable | None:
    """Show a column of a table by transformation as a heat table; None if it has no numbers.

    Args:
        name: the column; its intervals are the small text.
        small: another column to show as small text.
        role: leave out transformations of other roles.
    """
    column = next(column for column in table.columns if column.name == name)
    cells: dict[tuple[str, str], Cell] = {}  # by backbone and transformation
    for row in table.rows:
        values = {each.name: value for each, value in zip(table.columns, row, strict=True)}
        number, low, high = values[name] or (None, None, None) if column.interval else (values[name], None, None)
        below = "" if low is None or high is None else show_interval((low, high), column.kind)
        if small and values[small] is not None:
            below = show(values[small], column.kind)
        heat = None if number is None else min(max(number, 0.0), 1.0)
        cells[row[0], row[1]] = Cell(show(number, column.kind), below, heat)
    known = {place for place, cell in cells.items() if cell.heat is not None}
    names = [backbone for backbone in results.ordered() if any(backbone == other for other, _ in known)]
    rows = []
    for made in results.transformations:
        each = [cells.get((backbone, made.name), Cell(show(None), "", None)) for backbone in names]
        if role in ("", made.role) and any(cell.heat is not None for cell in each):
            rows.append((made.kind, made.name, each))
    return HeatTable.of(results, names, rows) if rows else None


# overall scores of each task: score, heading, kind
_OVERALL: dict[str, tuple[tuple[str, str, Kind], ...]] = {
    "transformation": (("accuracy", "All", "share"),),
    "kind": (("seen", "All seen", "share"), ("held_out", "All held out", "share"), ("gap", "Gap", "points")),
    "kind_rotation": (
        ("accuracy", "All", "share"),
        ("balanced", "By kind", "share"),
        ("styles", "All painting styles", "share"),
    ),
    "class": (("original", "Original", "share"), ("transformed", "All transformed", "share")),
}


def accuracies(results: ResultsDocument, task: str, *, role: str = "") -> list[tuple[str, HeatTable]]:
    """(head, accuracy by transformation) of a task for all heads that have any, with overall scores and chance.

    Backbones whose probe has not converged are marked †.

    Args:
        role: leave out transformations of other roles, and for ``train`` the scores of held-out ones.
    """
    table, chance = by_transformation(results, task), results.chance_of(task.removesuffix("_rotation"))
    made = []
    for head, column in zip(results.heads(), table.columns[4:], strict=True):
        if (found := heat_table(results, table, column.name, role=role)) is None:
            continue
        probes = [results.probe(name, task, head) or ProbeScores() for name, _ in found.columns]
        footer = []
        for key, heading, kind in _OVERALL[task][: 1 if role == "train" else None]:
            values = [getattr(probe, key) for probe in probes]
            if any(value is not None for value in values):
                intervals = [show_interval(value and value.interval, kind) for value in values]
                cells = (Cell(show(v, kind), interval, None) for v, interval in zip(values, intervals, strict=True))
                footer.append((heading, tuple(cells)))
        if chance is not None:
            footer.append(("Chance", (Cell(show(chance), "", None),) * len(probes)))
        groups = found.groups
        if task == "transformation":
            groups = tuple(
                (kind, tuple((name, _taken_for(name, cells, probes)) for name, cells in rows)) for kind, rows in groups
            )
        marks = [" †" * probe.unconverged for probe in probes]
        columns = tuple((name + mark, control) for (name, control), mark in zip(found.columns, marks, strict=True))
        made.append((head, replace(found, columns=columns, groups=groups, footer=tuple(footer))))
    return made


def _taken_for(name: str, cells: Sequence[Cell], probes: Sequence[ProbeScores]) -> tuple[Cell, ...]:
    """Cells that say what variants of a transformation were most often taken for, besides itself."""
    noted = []
    for cell, probe in zip(cells, probes, strict=True):
        counts = confused_with(probe, name)
        total, wrong = sum(count for _, count in counts), [each for each in counts if each[0] != name]
        text = f"most often taken for {wrong[0][0]} ({show(wrong[0][1] / total)}%)" if wrong else ""
        noted.append(replace(cell, note=text or ("never mistaken" if counts else "")))
    return tuple(noted)


# column, title and explanation
_GEOMETRY = (
    (
        "sensitivity",
        "Sensitivity",
        "1 − cosine between a variant and its original photograph, after subtracting the mean of the original "
        "photographs from both, averaged over photographs. 0: the embedding does not move; 1: the variant is as "
        "dissimilar to its photograph as an unrelated one.",
    ),
    (
        "equivariance",
        "Equivariance",
        "Mean cosine between the displacement of one photograph and the mean of the displacements of all others, "
        "each at unit length. 1: the transformation moves all embeddings in the same direction; 0: in unrelated "
        "directions.",
    ),
    (
        "steerability",
        "Steerability",
        "R² on test photographs of a ridge regression from the original embedding to the variant's; 0 is no "
        "better than the mean. Small: R² of the original embedding itself.",
    ),
)


def geometry_tables(results: ResultsDocument) -> list[tuple[str, str, HeatTable]]:
    """(title, explanation, table) of sensitivity, equivariance and steerability."""
    table = geometry(results)
    small = {"steerability": "unchanged"}
    return [
        (title, text, found)
        for key, title, text in _GEOMETRY
        if (found := heat_table(results, table, key, small=small.get(key, ""))) is not None
    ]
