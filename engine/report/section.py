"""Sections of a report as data: tables, plots and sentences, without HTML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from substyle.engine.report.data import Table
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
    """Heat tables with title and explanation, of which the first one is open; a label for screen readers."""

    kind: ClassVar = "heat"
    parts: tuple[tuple[str, str, HeatTable], ...]
    label: str = ""


@dataclass(frozen=True)
class Strip:
    """Heat tables as strips: a row per backbone, a cell per transformation, of which the first table is open.

    Attributes:
        parts: (title, table).
        marked: transformations that are marked.
        plots: the first table, for files only.
    """

    kind: ClassVar = "strip"
    parts: tuple[tuple[str, HeatTable], ...]
    marked: frozenset[str]
    plots: Plots


@dataclass(frozen=True)
class Panel:
    """A plot.

    Attributes:
        name: its heading.
        draw: draws it on axes of matplotlib; `figures.tip` adds what the page shows at the pointer.
        caption: what is said below it.
        spoken: what screen readers say of it, if not the caption.
    """

    name: str
    draw: Callable[[Any], None]
    caption: str = ""
    spoken: str = ""


@dataclass(frozen=True, eq=False)
class Plots:
    """Plots side by side; those with labels and without a legend of their own share one.

    Attributes:
        name: of a file with all of them; empty: none.
        size: width and height of the axes of each, in inches.
        across: the most in a row of the file.
        shared: whether vertical axes are equal, and labelled once in each row of the file.
        tables: those with its numbers.
    """

    kind: ClassVar = "plots"
    name: str
    panels: tuple[Panel, ...]
    size: tuple[float, float] = (2.4, 1.8)
    across: int = 3
    shared: bool = False
    tables: tuple[str, ...] = ()


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


Block = Text | Heading | Data | Heat | Strip | Plots | Pictures | Details


@dataclass(frozen=True)
class Answer:
    """What a section says in short.

    Attributes:
        question: in plain words.
        number: with its unit, such as ``93.1%``, or ``inconclusive``.
        interval: what it is, its interval, what it is over, and chance, such as ``accuracy; 95% interval 92.4–93.8;
            320 photographs; chance 3.2%``.
        text: one to three sentences.
        plots: a small picture.
    """

    question: str
    number: str
    interval: str
    text: str
    plots: Plots


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        key: its anchor.
        name: its entry in the table of contents.
        title: its heading, the question that it is about; the page shows the rest if a reader opens it.
        blocks: what it shows.
        answer: in short; the first three of all sections are at the top of the page.
        front: whether it is open and follows the answers.
    """

    key: str
    name: str
    title: str
    blocks: tuple[Block, ...]
    answer: Answer | None = None
    front: bool = False


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
