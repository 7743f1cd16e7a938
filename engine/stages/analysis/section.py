"""Neighbours, maps and geometry of embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from substyle.engine.report.data import Column, Table, head_name, scored, words
from substyle.engine.report.figures import FULL, MUTED, panels
from substyle.engine.report.heat_tables import geometry_tables
from substyle.engine.report.maps import KINDS, Scatter, draw_maps, embedding_maps
from substyle.engine.report.section import Block, Data, Details, Explained, Heading, Plots, Section, Text
from substyle.engine.report.tables import geometry, knn, neighbours
from substyle.engine.results.model import HEADS, Balance, Neighbours, ResultsDocument


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The sections that have numbers."""
    yield from _neighbours(results)
    yield from _map(results)
    yield from _geometry(results)


def _neighbours(results: ResultsDocument) -> Iterator[Section]:
    beside, bars, near = knn_beside_probes(results), balance_bars(results), neighbours(results)
    blocks: list[Block] = [Data(knn(results), hidden=True)]
    for table in beside:
        blocks.append(Heading(f"{table.caption}: nearest neighbours and probes"))
        blocks.append(Data(table, f"{table.caption} by nearest neighbours and by probes", saved=False))
    if beside:
        text = "Votes of the k nearest variants of training photographs by cosine similarity; ties go to the nearest. "
        text += "Queries are all variants of test photographs, so class votes correspond to the class probe on "
        blocks.append(Text(f"{text}unchanged and transformed photographs together.", note=True))
    if bars:
        blocks += [Heading("What the nearest other variant shares"), Plots((Bars(tuple(bars), _resampled(results)),))]
    note = (
        "R@k: recall of the same photograph, or of the same style in another photograph, among the k nearest other "
        "variants. AMI: adjusted mutual information of k-means clusters with transformations or classes, with as many "
        "clusters; its interval does not cover the choice of clusters."
    )
    if near.rows:
        blocks.append(Details("Retrieval and clusters", (Data(near, "Retrieval and clusters"), Text(note, note=True))))
    if len(blocks) > 1:
        yield Section("neighbours", "Neighbours", "Neighbours", tuple(blocks))


def _map(results: ResultsDocument) -> Iterator[Section]:
    maps = embedding_maps(results)
    if not maps:
        return
    text = (
        "Variants of test photographs placed by t-SNE, the same ones for each backbone, coloured twice. Neighbours on "
    )
    text += "the map are mostly neighbours among the embeddings; distances between clusters and their sizes have no "
    blocks: list[Block] = [Text(f"{text}meaning.", note=True)]
    for title, key in KINDS:
        plots = [Scatter(each.name, title, getattr(each, key)) for each in maps if getattr(each, key)]
        if plots:
            figure = "" if len(blocks) > 1 else "map"  # one figure has both
            key_groups = plots[0].groups
            blocks += [Heading(f"By {title}"), Plots(tuple(plots), figure, lambda: draw_maps(maps), key_groups)]
    yield Section("map", "Map", "Map: what lies together?", tuple(blocks))


def _geometry(results: ResultsDocument) -> Iterator[Section]:
    blocks: list[Block] = [Data(geometry(results), hidden=True)]
    if tables := geometry_tables(results):
        blocks.append(Explained(tuple(tables)))
    if moved := _moved(results):
        blocks.append(Plots((), "robustness", lambda: _robustness(moved)))
    if len(blocks) > 1:
        yield Section("geometry", "Geometry", "Geometry", tuple(blocks))


def _resampled(results: ResultsDocument) -> str:
    sampled = next(iter(results.ordered().values())).sampled or {}
    return "folders of photographs" if sampled.get("resample_by") == "folder" else "photographs"


@dataclass(frozen=True)
class Bar:
    """Fractions of one backbone that sum to 1.

    Attributes:
        parts: (name, fraction, interval or None).
        edges: intervals of the first part's end and the last part's start, as fractions of the bar.
    """

    name: str
    control: bool
    parts: tuple[tuple[str, float, list[float] | None], ...]
    edges: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Bars:
    """Bars of all backbones, and what was resampled for their intervals."""

    macro: ClassVar = "bars"
    bars: tuple[Bar, ...]
    drawn: str


def balance_bars(results: ResultsDocument) -> list[Bar]:
    """Fractions of variants by what the nearest other variant shares."""
    bars = []
    for name, backbone in results.ordered().items():
        shares, ends = backbone.balance or Balance(), backbone.balance_ci95 or {}
        values = [(key, getattr(shares, key)) for key in ("same_image", "same_transformation", "neither")]
        parts = tuple((key, value, ends.get(key)) for key, value in values if value is not None)
        if len(parts) == len(values):
            first, last = parts[0][2], parts[-1][2]
            edges = ([(first[0], first[1])] if first else []) + ([(1 - last[1], 1 - last[0])] if last else [])
            bars.append(Bar(name, bool(backbone.control), parts, tuple(edges)))
    return bars


def knn_beside_probes(results: ResultsDocument) -> list[Table]:
    """Tables of k-NN accuracy for style and class, next to the accuracy of probes."""
    near = {name: backbone.knn or Neighbours() for name, backbone in results.ordered().items()}
    ks = sorted({int(k) for each in near.values() for k in each.transformation or {}})
    pooled = [head for head in results.heads() if head in HEADS]
    parts = (("clean", "unchanged"), ("obfuscated", "transformed"))
    probes = {
        "transformation": [(f"{head_name(head)} probe", "fine", head, "accuracy") for head in pooled],
        "class": [(f"{head_name(head)}, {word}", "semantic", head, key) for head in pooled for key, word in parts],
    }
    made = []
    for task, attribute, caption in (("transformation", "transformation", "Style"), ("class", "label", "Class")):
        columns = [*words("backbone"), *(Column(f"k{k}", f"{k}\u2011NN") for k in ks)]
        columns += [Column("probe", heading, interval=True) for heading, *_ in probes[task]]
        rows = []
        for name, each in near.items():
            votes = [(getattr(each, attribute) or {}).get(str(k)) for k in ks]
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
        probe = next(iter((backbone.semantic or {}).values()), None)
        accuracies = (probe and probe.by_transformation) or {}
        moved = ((m, accuracies.get(t), t) for t, m in (backbone.sensitivity or {}).items())
        pairs = [(m, accuracy, t) for m, accuracy, t in moved if m is not None and accuracy is not None]
        if pairs:
            shown.append((name, pairs))
    return shown


def _robustness(shown: Sequence[tuple[str, list[tuple[float, float, str]]]]) -> Any:  # noqa: ANN401 (matplotlib ships no types)
    figure, axes = panels(len(shown), 3, 2.5, 2.4, sharex=True, sharey=True)
    for axis, (name, pairs) in zip(axes, shown, strict=True):
        axis.scatter([p[0] for p in pairs], [100 * p[1] for p in pairs], s=12, color=FULL, linewidths=0)
        x, y, lowest = min(pairs, key=lambda pair: pair[1])
        axis.annotate(lowest, (x, 100 * y), (4, -7), textcoords="offset points", fontsize=6, color=MUTED)
        axis.set(title=name, ylim=(0, 100))
        axis.title.set_size(7)
    figure.supxlabel("sensitivity (1 − centred cosine to the unchanged photograph)", fontsize=8)
    figure.supylabel("class accuracy, %", fontsize=8)
    return figure
