"""Few-shot class accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from substyle.engine.report.data import Column, ComparedScore, Table, scored, show, words
from substyle.engine.report.section import Data, Section, Text
from substyle.engine.results.model import BackboneResults, Model, ResultsDocument, Share, ShareEstimate


class FewShot(Model):
    """Class accuracy of logistic regression on few photographs of each class: the mean over draws, and each draw's.

    ``fewest`` is the number of training photographs of the smallest class.
    """

    accuracy: ShareEstimate | None = None
    accuracies: list[Share] | None = None
    shots: int | None = None
    draws: int | None = None
    seed: int | None = None
    resample_by: str | None = None
    fewest: int | None = None
    images: int | None = None
    classes: int | None = None
    converged: bool | None = None


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Few-shot accuracy."""
    found: FewShot = backbone.entry("few_shot") or FewShot()
    if found.accuracy is not None:
        heading = f"Class, {found.shots} photographs each"
        converged = found.converged is not False
        yield ComparedScore("few_shot", heading, found.accuracy, converged, found.images)


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without classes."""
    found: Mapping[str, FewShot] = results.entries("few_shot")
    if not found:
        return
    first = next(iter(found.values()))
    images, by = show(first.images, "count"), results.drawn(first.resample_by)
    text = f"Accuracy of logistic regression on {first.shots} original training photographs of each class"
    if first.shots and first.fewest and first.fewest < first.shots:
        text += f" (all {first.fewest} of the smallest)"
    text += f", mean over {first.draws} draws, on {images} original test photographs. Draws are the same for all "
    text += f"backbones; intervals are over {by} and draws. Chance is {_chance(first)} %. Embeddings are "
    text += "as they are stored and the penalty is fixed (C = 1), as in MIEB: of embeddings with small numbers it is "
    text += (
        "strong. The last column is the linear class probe on all training photographs, whose penalty is selected; it "
    )
    text += "also counts test photographs of classes without training photographs, as wrong."
    columns = (
        *words("backbone"),
        Column("accuracy", f"Class, {first.shots} each", interval=True),
        *(Column("lowest", "Lowest draw"), Column("highest", "Highest draw")),
        Column("all", "All photographs", interval=True),
    )
    rows = []
    for name, own in found.items():
        ends = (min(own.accuracies), max(own.accuracies)) if own.accuracies else (None, None)
        rows.append((name, scored(own, "accuracy"), *ends, scored(results.probe(name, "class", "linear"), "original")))
    table = Table("few_shot", "Class accuracy with few labels.", columns, tuple(rows))
    yield Section("few-shot", "Few labels", "Few labels: how soon is the class learnt?", (Text(text), Data(table)))


def _chance(found: FewShot) -> str:
    return show(1 / found.classes) if found.classes else show(None)
