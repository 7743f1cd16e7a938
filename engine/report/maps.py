"""Maps of embeddings, coloured by kind and by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from substyle.engine.report.figures import GRID, THIRD, tip, wrapped
from substyle.engine.results.model import ResultsDocument

# the ten colours of Tableau, and grey for everything else
COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#17a2d0"),
    THIRD,
)
_OTHERS = len(COLOURS) - 1


@dataclass(frozen=True)
class Group:
    """Points of one colour: name, colour as index into `COLOURS`, coordinates."""

    name: str
    colour: int
    points: tuple[tuple[int, int], ...]


def embedding_maps(results: ResultsDocument) -> dict[str, dict[str, tuple[Group, ...]]]:
    """Groups by kind and by class of each backbone that has a map; all have the same names and colours."""
    maps: dict[str, dict[str, tuple[Group, ...]]] = {"kind": {}, "class": {}}
    classes = dict(enumerate(results.classes or []))
    for name, backbone in results.ordered().items():
        if (found := backbone.map) is None:
            continue
        points = list(zip(found.x, found.y, strict=True))
        kind = [found.kind[t] for t in found.transformation]
        maps["kind"][name] = _grouped(points, kind, found.kind)
        names = [*classes.values(), "unlabelled"]
        by_class = _grouped(points, [classes.get(c, "unlabelled") for c in found.label], names)
        if len(by_class) > 1:
            maps["class"][name] = by_class
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


def draw_map(axis: Any, groups: Sequence[Group]) -> None:  # noqa: ANN401 (matplotlib ships no types)
    """Draw the points of a map."""
    for group in groups:
        # one path of strokes too short to see, which is shorter than a marker for each point
        x, y = ([at for point in group.points for at in (point[i], point[i] + 1, nan)] for i in (0, 1))
        colour = COLOURS[group.colour]
        (line,) = axis.plot(x, y, color=colour, lw=2.8, solid_capstyle="round")
        tip(line, group.name)
        axis.plot([], [], "o", ms=4, color=colour, label=wrapped(group.name))
    axis.set(xticks=[], yticks=[], xlim=(-15, 1015), ylim=(1015, -15), aspect="equal")
    axis.spines[:].set(visible=True, color=GRID)
