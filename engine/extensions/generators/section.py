"""Accuracy on styles of generators that a probe has not seen, and its differences between networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import hypot

from substyle.engine.report.data import Column, ComparedScore, Table, scored, show, words
from substyle.engine.report.deciding import more_generators
from substyle.engine.report.findings import LEVEL
from substyle.engine.report.section import Block, Data, Details, Section, Text
from substyle.engine.results.model import BackboneResults, Estimate, Finite, Model, Numbers, ResultsDocument, Share

_FEW = 15  # contrasts that are shown at once


class CrossedEstimate(Estimate):
    """An `Estimate` over generators, with a standard error over each of what is random."""

    se_generators: Finite | None = None
    se_photographs: Finite | None = None


class UnseenStyles(Model):
    """Accuracy of kind probes on the styles of generators that they have not seen.

    ``matrix`` is the accuracy by generator trained on (row) and tested (column), ``seen`` that on the transformations
    of other kinds, on which all probes were trained.
    """

    accuracy: CrossedEstimate | None = None
    seen: Share | None = None
    generators: list[str] | None = None
    matrix: list[list[Share | None]] | None = None
    by_style: Numbers | None = None
    images: int | None = None
    resample_by: str | None = None
    converged: bool | None = None


class Contrast(Model):
    """The difference a - b of two networks in `UnseenStyles`; ``p_holm`` after Holm's correction over all pairs."""

    a: str
    b: str
    difference: CrossedEstimate | None = None
    p: Share | None = None
    p_holm: Share | None = None
    converged: bool | None = None


class Contrasts(Model):
    """Differences of all pairs of networks."""

    contrasts: list[Contrast] | None = None


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Accuracy on styles of unseen generators."""
    found: UnseenStyles = backbone.entry("generators") or UnseenStyles()
    if found.accuracy is not None:
        converged = found.converged is not False
        yield ComparedScore("unseen_styles", "Unseen styles", found.accuracy, converged, found.images)


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none with fewer than three generators of styles."""
    found: Mapping[str, UnseenStyles] = results.entries("generators")
    if not found:
        return
    first = next(iter(found.values()))
    names, by = first.generators or [], results.drawn(first.resample_by)
    text = f"{len(names)} generators make the styles ({', '.join(names)}). Each trains kind probes in turn, with a few "
    text += "of its styles and the transformations of all other kinds; scored are the styles of all other generators"
    count = len(first.by_style or {})
    text += f", {count} styles" * bool(count) + f" of {show(first.images, 'count')} photographs. "
    text += f"{_verdicts(results)}"
    note = "95% intervals are over generators, which are random as trained on and as tested, over "
    note += f"{by} and over the training photographs; p values are after Holm's correction over all pairs."
    table, compared = unseen_styles(found), contrasts(results)
    blocks: list[Block] = [Text(text), Data(table, table.caption)]
    if compared.rows:
        data = Data(compared, compared.caption)
        blocks.append(data if len(compared.rows) <= _FEW else Details(f"All pairs ({len(compared.rows)})", (data,)))
    matrix = by_generator(found)
    blocks += [Details("By generator", (Data(matrix, matrix.caption),)), Text(note, note=True)]
    yield Section(
        "generators", "Unseen styles", "Unseen styles: does style generalise across generators?", tuple(blocks)
    )


def unseen_styles(found: Mapping[str, UnseenStyles]) -> Table:
    """Accuracy of each backbone, and what its uncertainty consists of."""
    columns = (
        *words("backbone"),
        Column("accuracy", "Unseen styles", interval=True),
        Column("seen", "Other classes, seen"),
        Column("se_generators", "Error: generators"),
        *(Column("se_photographs", "Photographs"), Column("se_training", "Training")),
    )
    rows = [(name, scored(own, "accuracy"), own.seen, *_errors(own.accuracy)) for name, own in found.items()]
    return Table("generators", "Kind probes on the styles of unseen generators.", columns, tuple(rows))


def by_generator(found: Mapping[str, UnseenStyles]) -> Table:
    """Accuracy on the styles of each generator, a mean over the others that probes were trained on."""
    names = list(dict.fromkeys(name for own in found.values() for name in own.generators or []))
    rows = []
    for backbone, own in found.items():
        place = {name: i for i, name in enumerate(own.generators or [])}
        each = []
        for name in names:
            column = [row[place[name]] for row in own.matrix or []] if name in place else []
            known = [value for value in column if value is not None]
            each.append(sum(known) / len(known) if known else None)
        rows.append((backbone, *each))
    columns = (*words("backbone"), *(Column(name, name) for name in names))
    return Table("by_generator", "Accuracy on the styles of each generator, unseen.", columns, tuple(rows))


def contrasts(results: ResultsDocument) -> Table:
    """Differences of all pairs of networks."""
    columns = (
        *(Column("a", "Backbone", "text"), Column("b", "Other backbone", "text")),
        Column("difference", "Difference", "points", interval=True),
        Column("p_holm", "p (Holm)", "number"),
        *words("verdict"),
    )
    found = _contrasts(results)
    rows = [(row.a, row.b, scored(row, "difference"), row.p_holm, _verdict(results, row)) for row in found]
    return Table("generator_contrasts", "Differences on the styles of unseen generators.", columns, tuple(rows))


def _errors(estimate: CrossedEstimate | None) -> tuple[float | None, float | None, float | None]:
    """Standard errors over generators, photographs and training."""
    if estimate is None:
        return None, None, None
    return estimate.se_generators, estimate.se_photographs, estimate.se_training


def _contrasts(results: ResultsDocument) -> list[Contrast]:
    found: Contrasts = results.entry("generators") or Contrasts()
    return found.contrasts or []


def _verdict(results: ResultsDocument, row: Contrast) -> str:
    """Which network is better, or what would decide it."""
    if row.difference is None or row.p_holm is None:
        return "not testable"
    if row.converged is False:
        return "undecided: not converged"
    if row.p_holm < LEVEL:
        return f"{row.a if row.difference.value > 0 else row.b} is better"
    if (first := results.entries("generators").get(row.a)) is None:
        return "undecided"
    own, *others = (error or 0.0 for error in _errors(row.difference))
    count, level = len(first.generators or []), LEVEL / len(_contrasts(results))
    return f"undecided; to decide: {more_generators(row.difference.value, own, hypot(*others), count, level)}"


def _verdicts(results: ResultsDocument) -> str:
    """Which pairs differ clearly."""
    rows = _contrasts(results)
    clear = [
        (row.difference.value, row.a, row.b)
        for row in rows
        if row.difference is not None and _verdict(results, row).endswith("better")
    ]
    if not rows:
        return ""
    texts = []
    for value, a, b in sorted(clear, key=lambda each: -abs(each[0])):
        better, worse = (a, b) if value > 0 else (b, a)
        texts.append(f"{better} is better than {worse} by {show(abs(value))} points")
    pairs = f"{len(rows)} pair{'s' * (len(rows) > 1)} of networks"
    return f"Of {pairs}, {len(texts) or 'none'} clearly differ{'s' * (len(texts) < 2)}" + (
        f": {'; '.join(texts[:_FEW])}{', …' * (len(texts) > _FEW)}." if texts else "."
    )
