"""Sections of a report as data: tables, plots and sentences, without HTML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from substyle.engine.report.data import Table
from substyle.engine.report.figures import Matrix
from substyle.engine.report.heat_tables import HeatTable


@dataclass(frozen=True)
class Text:
    """A paragraph; a note is in small type."""

    kind: ClassVar = "text"
    text: str
    note: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading of what follows."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Data:
    """A table, which is also written to files of its name.

    Attributes:
        label: what it shows, for screen readers; without it the caption is shown.
        saved: whether it is written to files.
        hidden: whether it is only written to files.
    """

    kind: ClassVar = "data"
    table: Table
    label: str = ""
    saved: bool = True
    hidden: bool = False


@dataclass(frozen=True)
class Heat:
    """Heat tables by head of the probe, of which the first one is open."""

    kind: ClassVar = "heat"
    tables: tuple[tuple[str, HeatTable], ...]
    label: str


@dataclass(frozen=True)
class Explained:
    """Heat tables or matrices with title and explanation, of which the first one is open.

    Attributes:
        figure: name of a figure with all of them; empty: none.
        draw: draws the figure with matplotlib.
    """

    kind: ClassVar = "explained"
    parts: tuple[tuple[str, str, HeatTable | Matrix], ...]
    figure: str = ""
    draw: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Plots:
    """Plots side by side, all of one type, whose ``macro`` draws one on the page.

    Attributes:
        figure: name of a figure with all of them; empty: none.
        draw: draws the figure with matplotlib.
        key: curves named above all plots, in place of a legend below each.
    """

    kind: ClassVar = "plots"
    plots: tuple[Any, ...]
    figure: str = ""
    draw: Callable[[], Any] | None = None
    key: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Matrices:
    """Confusion matrices by backbone, of which the first one is open."""

    kind: ClassVar = "matrices"
    title: str
    matrices: tuple[tuple[str, Matrix], ...]


@dataclass(frozen=True)
class Pictures:
    """Pictures with captions.

    Attributes:
        pictures: (file below the output folder, or "" without a picture; alternative text; caption).
    """

    kind: ClassVar = "pictures"
    pictures: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Details:
    """Blocks that are hidden at first."""

    kind: ClassVar = "details"
    summary: str
    blocks: tuple[Block, ...]


Block = Text | Heading | Data | Heat | Explained | Plots | Matrices | Pictures | Details


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        key: its anchor.
        name: its entry in the table of contents.
        title: its heading.
        blocks: what it shows.
    """

    key: str
    name: str
    title: str
    blocks: tuple[Block, ...]


def blocks_of(section: Section) -> list[Block]:
    """All blocks of a section, also those within others."""
    found: list[Block] = []
    todo = list(section.blocks)
    while todo:
        block = todo.pop(0)
        found.append(block)
        if isinstance(block, Details):
            todo = [*block.blocks, *todo]
    return found
