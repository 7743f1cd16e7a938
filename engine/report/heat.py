"""Heat tables: numbers of every transformation (down) and backbone (across), coloured by their size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from substyle.engine.report.cells import Kind, show, show_interval
from substyle.engine.report.results import Results, dig, heads, ordered
from substyle.engine.report.standing import interval_key


@dataclass(frozen=True)
class Cell:
    """One cell of a heat table: text, smaller text below it, and heat in [0, 1] (None: no colour)."""

    text: str
    small: str
    heat: float | None


@dataclass(frozen=True)
class HeatTable:
    """Transformations down, in groups by coarse class, backbones across.

    Attributes:
        columns: (backbone, whether it is a control).
        groups: (coarse class, rows of (transformation, cells)).
        footer: (heading, cells) below all groups.
    """

    columns: tuple[tuple[str, bool], ...]
    groups: tuple[tuple[str, tuple[tuple[str, tuple[Cell, ...]], ...]], ...]
    footer: tuple[tuple[str, tuple[Cell, ...]], ...] = ()


def heat_table(
    results: Results,
    value: Callable[[Any, str], Any],
    *,
    small: Callable[[Any, str], str] = lambda backbone, t: "",
    kind: Kind = "share",
    keep: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> HeatTable | None:
    """Numbers of every transformation (down) and backbone (across); None when there is none.

    Args:
        results: the results.
        value: of (backbone's results, transformation).
        small: likewise, the smaller text below the number, such as its interval.
        kind: how numbers are shown.
        keep: which transformations get a row.
    """
    suite = [row["name"] for row in results["transformations"]]
    known = {n: [value(results["backbones"][n], t) is not None for t in suite] for n in ordered(results)}
    names = [name for name, found in known.items() if any(found)]
    groups: dict[str, list[tuple[str, tuple[Cell, ...]]]] = {}
    for row in results["transformations"]:
        cells = []
        for name in names:
            backbone = results["backbones"][name]
            number = value(backbone, row["name"])
            heat = None if number is None else min(max(number, 0.0), 1.0)
            cells.append(Cell(show(number, kind), small(backbone, row["name"]), heat))
        if keep(row) and any(cell.heat is not None for cell in cells):
            groups.setdefault(row["coarse"], []).append((row["name"], tuple(cells)))
    if not groups:
        return None
    columns = tuple((name, bool(dig(results, "backbones", name, "control"))) for name in names)
    return HeatTable(columns, tuple((coarse, tuple(rows)) for coarse, rows in groups.items()))


def with_footer(
    results: Results, table: HeatTable | None, task: str, head: str, wanted: Sequence[tuple[str, str, Kind]]
) -> HeatTable | None:
    """The table with rows of overall scores, given as (score, heading, kind), and of chance below it."""
    if table is None:
        return None
    footer = []
    for key, heading, kind in wanted:
        cells = []
        for name, _ in table.columns:
            scores = dig(results, "backbones", name, task, head)
            interval = dig(scores, interval_key(scores, task, key))
            cells.append(Cell(show(dig(scores, key), kind), show_interval(interval, kind), None))
        footer.append((heading, tuple(cells)))
    chance = dig(results, "chance", "coarse" if task == "coarse_rotation" else task)
    if chance is not None:
        footer.append(("Chance", (Cell(show(chance), "", None),) * len(table.columns)))
    return HeatTable(table.columns, table.groups, tuple(footer))


def by_head(results: Results, make: Callable[[str], HeatTable | None]) -> list[tuple[str, HeatTable]]:
    """(head, table) for every head that has one."""
    made = ((head, make(head)) for head in heads(results))
    return [(head, table) for head, table in made if table is not None]


def style_tables(results: Results) -> list[tuple[str, HeatTable]]:
    """Accuracy of naming each transformation."""

    def make(head: str) -> HeatTable | None:
        table = heat_table(results, lambda b, t: dig(b, "fine", head, "by_transformation", t))
        return with_footer(results, table, "fine", head, [("accuracy", "All", "share")])

    return by_head(results, make)


def new_style_tables(results: Results, role: str) -> list[tuple[str, HeatTable]]:
    """Accuracy of the coarse class of the transformations of a role, ``held_out`` or ``train``."""
    wanted: dict[str, list[tuple[str, str, Kind]]] = {
        "held_out": [("seen", "All seen", "share"), ("held_out", "All held out", "share"), ("gap", "Gap", "points")],
        "train": [("seen", "All seen", "share")],
    }

    def make(head: str) -> HeatTable | None:
        table = heat_table(
            results,
            lambda b, t: dig(b, "coarse", head, "by_transformation", t, "accuracy"),
            small=lambda b, t: show_interval(dig(b, "coarse", head, "by_transformation", t, "ci95")),
            keep=lambda row: row["role"] == role,
        )
        return with_footer(results, table, "coarse", head, wanted[role])

    return by_head(results, make)


def rotation_tables(results: Results) -> list[tuple[str, HeatTable]]:
    """Accuracy of the coarse class of each transformation when that one alone was held out."""

    def make(head: str) -> HeatTable | None:
        table = heat_table(
            results,
            lambda b, t: dig(b, "coarse_rotation", head, "by_transformation", t, "accuracy"),
            small=lambda b, t: show_interval(dig(b, "coarse_rotation", head, "by_transformation", t, "ci95")),
        )
        wanted: list[tuple[str, str, Kind]] = [("accuracy", "All", "share"), ("styles", "All styles", "share")]
        found = [each for each in wanted if any(_known(results, head, each[0]))]
        return with_footer(results, table, "coarse_rotation", head, found)

    return by_head(results, make)


def _known(results: Results, head: str, key: str) -> list[bool]:
    return [dig(results, "backbones", name, "coarse_rotation", head, key) is not None for name in ordered(results)]


def substance_tables(results: Results) -> list[tuple[str, HeatTable]]:
    """Accuracy of the class probe on each transformation."""

    def make(head: str) -> HeatTable | None:
        table = heat_table(results, lambda b, t: dig(b, "semantic", head, "by_transformation", t))
        wanted: list[tuple[str, str, Kind]] = [
            ("clean", "Unchanged", "share"),
            ("obfuscated", "All transformed", "share"),
        ]
        return with_footer(results, table, "semantic", head, wanted)

    return by_head(results, make)


def geometry_tables(results: Results) -> list[tuple[str, str, HeatTable]]:
    """(title, explanation, table) of sensitivity, equivariance and steerability."""
    wanted = (
        (
            "sensitivity",
            "Sensitivity",
            "How far a transformation moves the embedding: 1 − cosine between a variant and its own unchanged "
            "photograph, after the mean of the unchanged photographs was subtracted from both, averaged over "
            "photographs. 0 means that it does not move, 1 that it is as unlike its photograph as any other is.",
        ),
        (
            "equivariance",
            "Equivariance",
            "Whether a transformation moves every embedding the same way: mean cosine between one photograph's "
            "displacement and the mean direction of all the others. 0 means anywhere, 1 means always the same way.",
        ),
        (
            "steerability",
            "Steerability",
            "Whether a linear map can predict the variant's embedding from the unchanged one: R² of a ridge regression "
            "on test photographs; 0 is no better than the mean. Small: the R² of leaving the embedding as it is.",
        ),
    )
    tables = []
    for key, title, text in wanted:
        table = heat_table(results, _geometry_value(key), small=_geometry_small(key), kind="number")
        if table is not None:
            tables.append((title, text, table))
    return tables


def _geometry_value(key: str) -> Callable[[Any, str], Any]:
    return lambda backbone, t: dig(backbone, key, t)


def _geometry_small(key: str) -> Callable[[Any, str], str]:
    def small(backbone: object, t: str) -> str:
        if key == "steerability":
            unchanged = dig(backbone, "steerability_unchanged", t)
            return "" if unchanged is None else show(unchanged, "number")
        return show_interval(dig(backbone, f"{key}_ci95", t), "number")

    return small
