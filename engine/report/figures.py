"""Pixels of figures: confusion matrices and heat maps.

Everything else is drawn by the template as SVG. Heat is painted in one colour whose opacity is the value, so that the
same picture serves light and dark pages.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from substyle.engine.report.data import Kind, Results, dig, heads, ordered, show, show_interval
from substyle.engine.report.findings import interval_key

HEAT = (31, 111, 181)


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix ready to draw.

    Attributes:
        labels: of rows (truth) and columns (prediction).
        png: its pixels as a data URI.
        worst: the largest confusions: (truth, prediction, share of the truth's row).
        side: width and height in pixels.
        margin: pixels that the labels need.
    """

    labels: tuple[str, ...]
    png: str
    worst: tuple[tuple[str, str, float], ...]
    side: float
    margin: float


def confusion(confusion: object, *, worst: int = 8) -> Matrix | None:
    """Prepare ``{"labels", "counts"}`` (rows true, columns predicted); None when there is nothing to show."""
    labels, counts = dig(confusion, "labels"), dig(confusion, "counts")
    if not labels or not counts:
        return None
    counts_CC = np.asarray(counts, dtype=np.float64)
    if counts_CC.shape != (len(labels), len(labels)):
        return None
    totals_C = counts_CC.sum(axis=1, keepdims=True)
    share_CC = np.divide(counts_CC, totals_C, out=np.zeros_like(counts_CC), where=totals_C > 0)
    off = share_CC * (1 - np.eye(len(labels)))
    order = np.argsort(-off, axis=None, kind="stable")[:worst]
    pairs = [np.unravel_index(i, off.shape) for i in order]
    names = tuple(map(str, labels))
    return Matrix(
        labels=names,
        png=heat_png(share_CC),
        worst=tuple((names[i], names[j], float(off[i, j])) for i, j in pairs if off[i, j] > 0),
        side=len(names) * (30.0 if len(names) <= 12 else 17.5),
        margin=min(14 + 5.6 * max(map(len, names)), 220.0),
    )


def heat_png(share_RC: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """A data URI of one pixel for each value in [0, 1]: one colour, opacity rising with the square root."""
    from PIL import Image

    pixels = np.empty((*share_RC.shape, 4), dtype=np.uint8)
    pixels[..., :3] = HEAT
    # the square root keeps confusions of a few per cent visible beside a full diagonal
    pixels[..., 3] = np.rint(255 * np.sqrt(np.clip(share_RC, 0.0, 1.0)))
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


# Heat tables: numbers of every transformation (down) and backbone (across), coloured by their size.


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
