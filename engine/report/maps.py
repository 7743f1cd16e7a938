"""Maps of embeddings, coloured by coarse class and by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from substyle.engine.results.model import ResultsDocument

# the ten colours of Tableau, and grey for everything else
COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#17a2d0"),
    "#a0a6ad",
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

    @property
    def shown(self) -> str:
        """The colour."""
        return COLOURS[self.colour]

    @property
    def path(self) -> str:
        """Points as an SVG path of strokes without length."""
        return "".join(f"M{x} {y}h0" for x, y in self.points)


@dataclass(frozen=True)
class EmbeddingMap:
    """The map of a backbone, grouped twice; groups of all maps have the same names and colours."""

    name: str
    by_coarse: tuple[Group, ...]
    by_class: tuple[Group, ...]


@dataclass(frozen=True)
class Scatter:
    """The points of one map in one grouping."""

    macro: ClassVar = "scatter"
    name: str
    by: str
    groups: tuple[Group, ...]


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


def draw_maps(maps: list[EmbeddingMap]) -> Any:  # noqa: ANN401 (matplotlib ships no types)
    """Draw the maps, a row for each backbone."""
    from matplotlib.figure import Figure

    kinds = [(title, key) for title, key in KINDS if any(getattr(each, key) for each in maps)]
    figure = Figure(figsize=(2.6 * len(kinds) + 1.6 * len(kinds), 2.5 * len(maps)), layout="constrained")
    axes = figure.subplots(len(maps), len(kinds), squeeze=False)
    for row, each in zip(axes, maps, strict=True):
        for axis, (title, key) in zip(row, kinds, strict=True):
            for group in getattr(each, key):
                x, y = zip(*group.points, strict=True)
                axis.scatter(x, y, s=3, color=COLOURS[group.colour], linewidths=0, label=group.name)
            axis.set(title=f"{each.name}, by {title}", xticks=[], yticks=[], aspect="equal")
            axis.invert_yaxis()
            axis.spines[:].set_visible(False)
            axis.title.set_size(7)
    for column, (_, key) in enumerate(kinds):
        if getattr(maps[0], key):
            axes[0, column].legend(
                loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=6, markerscale=2, handletextpad=0
            )
    return figure
