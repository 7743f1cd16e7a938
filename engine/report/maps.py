"""Maps of embeddings, coloured by coarse class and by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any

from substyle.engine.report.figures import GRID, THIRD, tip, wrapped
from substyle.engine.report.section import Panel
from substyle.engine.results.model import ResultsDocument

# the ten colours of Tableau, and grey for everything else
COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#17a2d0"),
    THIRD,
)
KINDS = (("coarse class", "by_coarse"), ("class", "by_class"))
"""Title and attribute of each grouping."""
_OTHERS = len(COLOURS) - 1


@dataclass(frozen=True)
class Group:
    """Points of one colour: name, colour as index into `COLOURS`, coordinates."""

    name: str
    colour: int
    points: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class EmbeddingMap:
    """The map of a backbone, grouped twice; groups of all maps have the same names and colours."""

    name: str
    by_coarse: tuple[Group, ...]
    by_class: tuple[Group, ...]


def embedding_maps(results: ResultsDocument) -> list[EmbeddingMap]:
    """Maps of all backbones that have one."""
    maps = []
    classes = dict(enumerate(results.classes or []))
    for name, backbone in results.ordered().items():
        if (found := backbone.map) is None:
            continue
        points = list(zip(found.x, found.y, strict=True))
        by_coarse = _grouped(points, [found.coarse[t] for t in found.transformation], found.coarse)
        names = [*classes.values(), "unlabelled"]
        by_class = _grouped(points, [classes.get(c, "unlabelled") for c in found.label], names)
        maps.append(EmbeddingMap(name, by_coarse, by_class if len(by_class) > 1 else ()))
    return maps


def _grouped(points: list[tuple[int, int]], name_R: list[str], order: Sequence[str]) -> tuple[Group, ...]:
    """Points by name, in the given order; the most frequent names have colours, the others share one."""
    most = {name for name, _ in Counter(name_R).most_common(_OTHERS)}
    members: dict[str, list[tuple[int, int]]] = {}
    for name, point in zip(name_R, points, strict=True):
        members.setdefault(name if name in most else "all others", []).append(point)
    named = [name for name in dict.fromkeys(order) if name in most]
    groups = [Group(name, colour, tuple(members[name])) for colour, name in enumerate(named)]
    others = members.get("all others")
    return (*([Group("all others", _OTHERS, tuple(others))] if others else ()), *groups)  # those below the rest


def map_panels(maps: Sequence[EmbeddingMap], by: str, key: str) -> tuple[Panel, ...]:
    """Panels of the maps that have the grouping of an entry of `KINDS`."""
    found = [(each.name, getattr(each, key)) for each in maps]
    return tuple(Panel(name, partial(_draw, groups=groups), spoken=f"map by {by}") for name, groups in found if groups)


def _draw(axis: Any, groups: Sequence[Group]) -> None:  # noqa: ANN401 (matplotlib ships no types)
    for group in groups:
        # one path of strokes too short to see, which is shorter than a marker for each point
        x, y = ([at for point in group.points for at in (point[i], point[i] + 1, nan)] for i in (0, 1))
        colour = COLOURS[group.colour]
        (line,) = axis.plot(x, y, color=colour, lw=2.8, solid_capstyle="round")
        tip(line, group.name)
        axis.plot([], [], "o", ms=4, color=colour, label=wrapped(group.name))
    axis.set(xticks=[], yticks=[], xlim=(-15, 1015), ylim=(1015, -15), aspect="equal")
    axis.spines[:].set(visible=True, color=GRID)
