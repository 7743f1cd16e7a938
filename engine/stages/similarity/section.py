"""Similarity of backbones, in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from substyle.engine.report.data import Column, Scored, Table, minus, scored, show
from substyle.engine.report.figures import draw_matrix
from substyle.engine.report.section import Data, Details, Panel, Plots, Section, Text
from substyle.engine.results.model import Estimate, Model, ResultsDocument


class SimilarPair(Model):
    """Similarity of the embeddings of two backbones."""

    cka: Estimate | None = None
    rsa: Estimate | None = None
    rsa_offsets: Estimate | None = None


class Similarity(Model):
    """Similarity of embeddings, by backbone and a later backbone."""

    pairs: dict[str, dict[str, SimilarPair | None] | None] | None = None
    sampled: dict[str, Any] | None = None


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none for fewer than two backbones."""
    (panels, names), table = similarity_maps(results), similarity(results)
    if not panels:
        return
    side = (0.36 if len(names) <= _NUMBERED else 0.17) * len(names)
    sampled = _found(results).sampled or {}
    variants, images, rsa = (show(sampled.get(key), "count") for key in ("variants", "images", "rsa_variants"))
    note = (
        f"On {variants} variants of {images} test photographs (RSA: {rsa} of them); 0 is expected for unrelated "
        "embeddings, 1 is equality up to rotation and scale. 95% intervals over random halves of the "
        f"{results.drawn(sampled.get('resample_by'))}."
    )
    blocks = (
        Text(similarity_summary(results)),
        Plots("similarity", panels, (side, side), shared=True, tables=("similarity",)),
        Details(f"All pairs ({len(table.rows)})", (Data(table, table.caption),)),
        Text(note, note=True),
    )
    yield Section("similarity", "Similarity", "Similarity: do backbones see alike?", blocks)


_MEASURES = (
    ("cka", "CKA", "Debiased linear CKA of the embeddings of variants of different photographs."),
    ("rsa", "RSA", "Spearman correlation of the cosines between variants of different photographs."),
    (
        "rsa_offsets",
        "RSA of styles",
        "Spearman correlation of the cosines between mean offsets of transformations from their originals: whether "
        "backbones arrange styles alike, whatever the photographs.",
    ),
)
_NUMBERED = 12  # most backbones with a number in each cell


def _found(results: ResultsDocument) -> Similarity:
    return results.entry("similarity") or Similarity()


def _pairs(results: ResultsDocument) -> list[tuple[str, str, SimilarPair | None]]:
    """(backbone, other backbone, measures)."""
    rows = _found(results).pairs or {}
    return [(a, b, pair) for a, row in rows.items() for b, pair in (row or {}).items()]


def similarity(results: ResultsDocument) -> Table:
    """Similarity of each pair of backbones."""
    columns = (
        Column("a", "Backbone", "text"),
        Column("b", "Other backbone", "text"),
        *(Column(key, title, "number", interval=True) for key, title, _ in _MEASURES),
    )
    rows = [(a, b, *(scored(pair, key) for key, _, _ in _MEASURES)) for a, b, pair in _pairs(results)]
    return Table("similarity", "Similarity of backbones on variants of test photographs.", columns, tuple(rows))


def similarity_maps(results: ResultsDocument) -> tuple[tuple[Panel, ...], list[str]]:
    """Measures with numbers, as matrices of the backbones that were compared, and these, controls last."""
    pairs = {frozenset((a, b)): pair for a, b, pair in _pairs(results)}
    names = [name for name in results.ordered() if any(name in pair for pair in pairs)]
    panels = []
    for key, title, text in _MEASURES:
        value_BB = np.eye(len(names))
        for (i, a), (j, b) in permutations(enumerate(names), 2):
            estimate = getattr(pairs.get(frozenset((a, b))), key, None)
            value_BB[i, j] = np.nan if estimate is None else estimate.value
        if np.isfinite(value_BB[~np.eye(len(names), dtype=bool)]).any():
            numbered = value_BB.tolist() if len(names) <= _NUMBERED else []
            cells = [["–" if np.isnan(v) else minus(f"{v:.2f}") for v in row] for row in numbered]
            opacity_BB = 0.6 * np.nan_to_num(np.clip(value_BB, 0, 1))  # text stays legible
            panels.append(Panel(title, partial(draw_matrix, names=names, value_CC=opacity_BB, cells=cells), text))
    return tuple(panels), names


def similarity_summary(results: ResultsDocument) -> str:
    """The most and the least similar pair of backbones that are not controls."""
    names = results.real()
    found = [(a, b, scored(pair, "cka")) for a, b, pair in _pairs(results) if a in names and b in names]
    pairs = sorted((cka, a, b) for a, b, cka in found if cka is not None)
    if not pairs:
        return ""

    def shown(pair: tuple[Scored, str, str]) -> str:
        (value, low, high), a, b = pair
        interval = "" if low is None else f", {show(low, 'number')} to {show(high, 'number')}"
        return f"{a} and {b} (CKA {show(value, 'number')}{interval})"

    if len(pairs) == 1:
        return f"Compared are {shown(pairs[0])}."
    return f"Most similar are {shown(pairs[-1])}, least similar {shown(pairs[0])}."
