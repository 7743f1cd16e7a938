"""Neighbours, maps and geometry of embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from substyle.engine.report import figures
from substyle.engine.report.data import (
    Column,
    ComparedScore,
    Scored,
    Table,
    head_name,
    scored,
    show,
    show_scored,
    words,
)
from substyle.engine.report.heat_tables import geometry_tables
from substyle.engine.report.maps import draw_map, embedding_maps
from substyle.engine.report.section import Block, Data, Details, Heading, Heat, Panel, Plots, Section, Text
from substyle.engine.report.tables import geometry, knn, neighbours
from substyle.engine.results.model import HEADS, BackboneResults, Balance, Neighbours, ResultsDocument


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The sections that have numbers."""
    yield from _neighbours(results)
    yield from _map(results)
    yield from _geometry(results)


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Votes of the 10 nearest neighbours, and what the nearest shares."""
    near, shares = backbone.knn or Neighbours(), backbone.balance or Balance()
    for key, heading, estimate in (
        ("knn_transformation_10", "Transformation, 10-NN", (near.transformation or {}).get("10")),
        ("knn_class_10", "Class, 10-NN", (near.label or {}).get("10")),
        ("same_image", "Nearest: same photograph", shares.same_image),
        ("same_transformation", "Nearest: same transformation", shares.same_transformation),
    ):
        if estimate is not None:
            yield ComparedScore(key, heading, estimate, images=(backbone.sampled or {}).get("query_images"))


def _neighbours(results: ResultsDocument) -> Iterator[Section]:
    beside, bars, near = knn_beside_probes(results), balance_bars(results), neighbours(results)
    blocks: list[Block] = [Data(knn(results), hidden=True)]
    for table in beside:
        blocks.append(Heading(f"{table.caption}: nearest neighbours and probes"))
        blocks.append(Data(table, f"{table.caption} by nearest neighbours and by probes", saved=False))
    if beside:
        text = "Votes of the k nearest variants of training photographs by cosine similarity; ties go to the nearest. "
        text += "Queries are all variants of test photographs, so class votes correspond to the class probe on "
        blocks.append(Text(f"{text}original and transformed photographs together.", note=True))
    if bars:
        caption = "Fraction of variants of test photographs, in per cent; lines are 95% intervals of the outer two "
        caption += f"fractions, from a bootstrap over {_resampled(results)}."
        spoken = ", ".join(f"{bar.name} {bar.text}" for bar in bars)
        shown = Panel("What the nearest other variant shares", partial(_draw_bars, bars=bars), caption, spoken)
        blocks.append(
            Plots("balance", (shown,), (3.2, figures.rows_height([bar.name for bar in bars])), tables=("neighbours",))
        )
    note = (
        "R@k: recall of the same photograph, or of the same transformation in another photograph, among the k nearest "
        "other variants. AMI: adjusted mutual information of k-means clusters with transformations or classes, with as "
        "many clusters; its interval does not cover the choice of clusters."
    )
    if near.rows:
        blocks.append(Details("Retrieval and clusters", (Data(near, "Retrieval and clusters"), Text(note, note=True))))
    if len(blocks) > 1:
        yield Section("neighbours", "Neighbours", "Neighbours: what is nearest?", tuple(blocks))


def _map(results: ResultsDocument) -> Iterator[Section]:
    text = (
        "Variants of test photographs placed by t-SNE, the same ones for each backbone, coloured twice. Neighbours on "
    )
    text += "the map are mostly neighbours among the embeddings; distances between clusters and their sizes have no "
    blocks: list[Block] = [Text(f"{text}meaning.", note=True)]
    for (kind, maps), name in zip(embedding_maps(results).items(), ("map", "map_by_class"), strict=True):
        if maps:
            panels = (Panel(own, partial(draw_map, groups=groups), spoken=f"by {kind}") for own, groups in maps.items())
            blocks += [Heading(f"By {kind}"), Plots(name, tuple(panels), (2, 2))]
    if len(blocks) > 1:
        yield Section("map", "Map", "Map: what lies together?", tuple(blocks))


def _geometry(results: ResultsDocument) -> Iterator[Section]:
    blocks: list[Block] = [Data(geometry(results), hidden=True)]
    if tables := geometry_tables(results):
        blocks.append(Heat(tuple(tables)))
    if moved := _moved(results):
        text = "Class accuracy after each transformation, against sensitivity (1 − centred cosine to the original "
        text += "photograph)."
        most = max(sensitivity for _, pairs in moved for sensitivity, _, _ in pairs)
        draw = partial(_draw_moved, most=most)
        panels = tuple(Panel(name, partial(draw, pairs=pairs), spoken=text) for name, pairs in moved)
        blocks += [Text(text, note=True), Plots("robustness", panels, shared=True, tables=("geometry", "class"))]
    if len(blocks) > 1:
        yield Section("geometry", "Geometry", "Geometry: how far do transformations move embeddings?", tuple(blocks))


def _resampled(results: ResultsDocument) -> str:
    sampled = next(iter(results.ordered().values())).sampled or {}
    return "folders of photographs" if sampled.get("resample_by") == "folder" else "photographs"


@dataclass(frozen=True)
class Bar:
    """Fractions of one backbone, each of `_SHARED`, that sum to 1."""

    name: str
    parts: tuple[Scored, ...]

    @property
    def text(self) -> str:
        """The fractions."""
        return " / ".join(show(share) for share, _, _ in self.parts)


_SHARED = {"same photograph": figures.FULL, "same transformation": figures.OPEN, "neither": figures.THIRD}


def _draw_bars(axis: Any, bars: Sequence[Bar]) -> None:  # noqa: ANN401 (matplotlib ships no types)
    figures.name_rows(axis, [bar.name for bar in bars], [bar.text for bar in bars])
    for y, bar in enumerate(bars):
        start = 0.0
        for part, (label, colour) in zip(bar.parts, _SHARED.items(), strict=True):
            (drawn,) = axis.barh(y, 100 * part[0], 0.6, 100 * start, color=colour, label="" if y else label)
            figures.tip(drawn, f"{bar.name}, {label}: {show_scored(part)}")
            start += part[0]
        (_, low, high), *_, (_, last_low, last_high) = bar.parts
        if low is not None and high is not None:
            axis.plot([100 * low, 100 * high], [y, y], color=figures.INK, lw=1.5)
        if last_low is not None and last_high is not None:
            axis.plot([100 - 100 * last_high, 100 - 100 * last_low], [y, y], color=figures.INK, lw=1.5)
    figures.legend_below(axis)


def balance_bars(results: ResultsDocument) -> list[Bar]:
    """Fractions of variants by what the nearest other variant shares."""
    bars = []
    for name, backbone in results.ordered().items():
        keys = ("same_image", "same_transformation", "neither")
        parts = tuple(score for key in keys if (score := scored(backbone.balance, key)))
        if len(parts) == len(_SHARED):
            bars.append(Bar(name, parts))
    return bars


def knn_beside_probes(results: ResultsDocument) -> list[Table]:
    """Tables of k-NN accuracy for transformation and class, next to the accuracy of probes."""
    near = {name: backbone.knn or Neighbours() for name, backbone in results.ordered().items()}
    ks = sorted({int(k) for each in near.values() for k in each.transformation or {}})
    pooled = [head for head in results.heads() if head in HEADS]
    parts = (("original", "original"), ("transformed", "transformed"))
    probes = {
        "transformation": [(f"{head_name(head)} probe", "transformation", head, "accuracy") for head in pooled],
        "class": [(f"{head_name(head)}, {word}", "class", head, key) for head in pooled for key, word in parts],
    }
    made = []
    for task, attribute, caption in (
        ("transformation", "transformation", "Transformation"),
        ("class", "label", "Class"),
    ):
        columns = [*words("backbone"), *(Column(f"k{k}", f"{k}\u2011NN") for k in ks)]
        columns += [Column("probe", heading, interval=True) for heading, *_ in probes[task]]
        rows = []
        for name, each in near.items():
            found = [(getattr(each, attribute) or {}).get(str(k)) for k in ks]
            votes = [None if vote is None else vote.value for vote in found]
            if any(value is not None for value in votes):
                values = [scored(results.probe(name, part, head), key) for _, part, head, key in probes[task]]
                rows.append((name, *votes, *values))
        if rows:
            made.append(Table(f"knn_{task}", caption, tuple(columns), tuple(rows)))
    return made


def _moved(results: ResultsDocument) -> list[tuple[str, list[tuple[float, float, str]]]]:
    """(backbone, [(sensitivity, class accuracy, transformation)]) of backbones that have both."""
    shown = []
    for name, backbone in (results.real() or results.ordered()).items():
        probe = next(iter((backbone.class_ or {}).values()), None)
        accuracies = (probe and probe.by_transformation) or {}
        moved = ((m, accuracies.get(t), t) for t, m in (backbone.sensitivity or {}).items())
        pairs = [(m.value, accuracy, t) for m, accuracy, t in moved if m is not None and accuracy is not None]
        if pairs:
            shown.append((name, pairs))
    return shown


def _draw_moved(axis: Any, pairs: Sequence[tuple[float, float, str]], most: float) -> None:  # noqa: ANN401
    for x, y, name in pairs:
        (dot,) = axis.plot(x, 100 * y, "o", ms=4, mew=0, color=figures.FULL)
        figures.tip(dot, f"{name}: sensitivity {show(x, 'number')}, class accuracy {show(y)}", name)
    x, y, lowest = min(pairs, key=lambda pair: pair[1])
    name = figures.wrapped(lowest)
    axis.annotate(name, (x, 100 * y), (4, -7), textcoords="offset points", size=7, color=figures.MUTED)
    axis.grid()
    axis.set(xlabel="sensitivity", ylabel="class accuracy, %", xlim=(0, 1.05 * most), ylim=(0, 100))
