"""Accuracy and R² of labels in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pydantic import Field

from substyle.engine.report.data import Column, ComparedScore, Table, plural, scored, show, show_interval, words
from substyle.engine.report.findings import Score
from substyle.engine.report.heat_tables import Cell, HeatTable
from substyle.engine.report.section import Block, Data, Heat, Section, Text
from substyle.engine.results.model import (
    BackboneResults,
    Estimate,
    Finite,
    Model,
    ResultsDocument,
    Share,
    ShareEstimate,
)
from substyle.engine.stages.shortcut.section import ARRANGEMENTS, HEADINGS, Arranged


class LabelScores(Model):
    """Scores of a label: accuracy with that of the most frequent value, or R² and error of numbers."""

    accuracy: ShareEstimate | None = None
    chance: Share | None = None
    converged: bool | None = None
    r2: Estimate | None = None
    error: Estimate | None = None


class ByValue(Model):
    """Class accuracy on photographs of a value, of probes trained with it and without it."""

    within: Share | None = None
    across: Share | None = None
    images: int | None = None


class AcrossValues(Model):
    """Class accuracy by value of a label: ``drop`` is ``within`` - ``across``, ``gap`` is from the mean to the worst
    value."""

    within: ShareEstimate | None = None
    across: ShareEstimate | None = None
    drop: Estimate | None = None
    worst: str | None = None
    gap: Finite | None = None
    by_value: dict[str, ByValue | None] | None = None
    images: int | None = None
    converged: bool | None = None


class LabelShortcut(Arranged):
    """Class accuracy of nearest neighbours by arrangement of a label's values."""

    images: int | None = None


class Label(LabelScores):
    """Scores of a label, with all of the embedding and with the mean of the class removed (``fixed``).

    ``missing`` photographs have no value, ``rare`` ones a value of few training photographs, and ``in_training`` ones
    belong to a group that is also in training. ``class_alone`` is the accuracy of the most frequent value of the class.
    """

    kind: str | None = None
    values: int | None = None
    images: int | None = None
    missing: int | None = None
    rare: int | None = None
    in_training: int | None = None
    balanced: Share | None = None
    class_alone: Share | None = None
    fixed: LabelScores | None = None
    few_shot: LabelScores | None = None
    mlp: LabelScores | None = None
    class_: AcrossValues | None = Field(default=None, alias="class")
    shortcut: LabelShortcut | None = None


class Labels(Model):
    """`Label` by name."""

    by_label: dict[str, Label | None] | None = None
    group: str | None = None
    resample_by: str | None = None
    shots: int | None = None
    min_images: int | None = None


def _number(own: LabelScores | None) -> Estimate | None:
    """Accuracy or R²."""
    return None if own is None else own.accuracy or own.r2


def _each(found: Labels) -> Iterator[tuple[str, Label, Estimate]]:
    for name, label in (found.by_label or {}).items():
        if label is not None and (number := _number(label)) is not None:
            yield name, label, number


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Accuracy or R² of each label."""
    found: Labels = backbone.entry("labels") or Labels()
    for name, label, number in _each(found):
        heading = f"{name}, R²" if label.accuracy is None else name
        yield ComparedScore(f"label_{name}", heading, number, label.converged is not False, label.images)


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without labels."""
    found: Mapping[str, Labels] = results.entries("labels")
    known = {name: own for name, own in found.items() if any(True for _ in _each(own))}
    if not known:
        return
    first = next(iter(known.values()))
    text = "Labels besides the class, predicted from original photographs: accuracy of a linear probe, or R² of "
    text += "ridge regression for numbers. In the second table the mean of the photograph's class is removed from "
    text += "embeddings (and from numbers), so that what remains above chance is not the class. "
    text += " ".join(_sentence(name, own) for name, own in known.items())
    by = f"values of {first.group}" if first.group else results.drawn(first.resample_by)
    note = f"95% intervals are over {by}. Chance is the most frequent value. "
    note += " ".join(filter(None, (_left_out(name, label) for name, label in (first.by_label or {}).items() if label)))
    blocks: list[Block] = [
        Text(text),
        Heat(
            (
                ("All of the embedding", "", heat(results, known, fixed=False)),
                ("Class held fixed", "", heat(results, known, fixed=True)),
            ),
            "Labels by backbone",
        ),
        Data(leaks(known), hidden=True),
    ]
    if (table := across_values(known)).rows:
        text = "Is it the label or the class? Class accuracy on photographs of each value, of linear probes that were "
        text += "trained on all values, and on all others; both leave out as many photographs. The price of a shortcut "
        text += "is that of nearest neighbours: accuracy where only the query's class shares its value, minus that "
        text += "where only the other classes do."
        blocks += [Text(text), Data(table)]
        blocks += [Data(each, hidden=True) for each in (by_value(known), shortcuts(known)) if each.rows]
    yield Section(
        "labels", "Labels", "Labels: what else does the embedding know?", (*blocks, Text(note.strip(), note=True))
    )


def _sentence(name: str, found: Labels) -> str:
    """The label that a backbone predicts best above chance, of those whose interval is above it."""
    clear = []
    for label, own, number in _each(found):
        if number.low is not None and number.low > (own.chance or 0.0):
            clear.append((label, own, number))
    if not clear:
        return f"{name} predicts no label clearly above chance."
    label, own, number = max(clear, key=lambda each: each[2].value - (each[1].chance or 0.0))
    what = "accuracy" if own.accuracy is not None else "R²"
    tested = "" if own.images is None else plural(own.images, "photograph")
    score = Score(name, False, number.value, number.interval, tested)
    after = _number(own.fixed) if score.conclusive else None
    fixed = "" if after is None else f"; {show(after)}% with the class held fixed"
    return f"{name} predicts {label} best: {what} {score.text(own.chance)}{fixed}."


def _left_out(name: str, label: Label) -> str:
    """What is left out of a label, or that it cannot be predicted at all."""
    reasons = {"without a value": label.missing, "of a rare value": label.rare}
    reasons["of a group that is also in training"] = label.in_training
    parts = [f"{show(count, 'count')} {reason}" for reason, count in reasons.items() if count]
    text = f"{name}: left out {', '.join(parts)}." if parts else ""
    if _number(label) is None:
        text = f"{name}: not predicted, with {show(label.values, 'count')} usable values. {text}".rstrip()
    return text


def heat(results: ResultsDocument, found: Mapping[str, Labels], *, fixed: bool) -> HeatTable:
    """Accuracy or R² by label (rows) and backbone (columns)."""
    known = {name: {label: scores for label, scores, _ in _each(own)} for name, own in found.items()}
    rows = []
    for label in dict.fromkeys(label for own in known.values() for label in own):
        each = [own.get(label) for own in known.values()]
        first = next(own for own in each if own is not None)
        kind = f"{first.values} classes" if first.kind == "class" else "numbers (R²)"
        rows.append((kind, label, [_cell(own.fixed if fixed and own else own) for own in each]))
    return replace(HeatTable.of(results, known, rows), headings=("Kind", "Label"))


def _cell(own: LabelScores | None) -> Cell:
    number = _number(own)
    if own is None or number is None:
        return Cell(show(None), "", None)
    small = show_interval(number) + (f", chance {show(own.chance)}" if own.chance is not None else "")
    return Cell(show(number) + " †" * (own.converged is False), small, min(max(number.value, 0.0), 1.0))


def leaks(found: Mapping[str, Labels]) -> Table:
    """All scores by backbone and label."""
    columns = (
        *words("backbone", "label", "kind"),
        *(Column(name, name.capitalize(), "count") for name in ("values", "images", "missing", "rare")),
        *(Column("chance", "Chance"), Column("class_alone", "Class alone")),
        Column("accuracy", "Accuracy", interval=True),
        Column("balanced", "Mean over values"),
        Column("fixed", "Class held fixed", interval=True),
        *(Column("few_shot", "Few labels", interval=True), Column("mlp", "MLP", interval=True)),
        *(Column("r2", "R²", interval=True), Column("fixed_r2", "R², class held fixed", interval=True)),
        Column("error", "Mean absolute error", "number", interval=True),
    )
    rows = [
        (
            *(name, label, own.kind or "", own.values, own.images, own.missing, own.rare),
            *(own.chance, own.class_alone, scored(own, "accuracy"), own.balanced, scored(own.fixed, "accuracy")),
            *(scored(own.few_shot, "accuracy"), scored(own.mlp, "accuracy")),
            *(scored(own, "r2"), scored(own.fixed, "r2"), scored(own, "error")),
        )
        for name, labels in found.items()
        for label, own in (labels.by_label or {}).items()
        if own is not None
    ]
    return Table("labels", "Accuracy and R² of labels.", columns, tuple(rows))


def across_values(found: Mapping[str, Labels]) -> Table:
    """Class accuracy within and across values of each label."""
    columns = (
        *words("backbone", "label"),
        *(Column("within", "All values", interval=True), Column("across", "Other values", interval=True)),
        Column("drop", "Difference", "points", interval=True),
        *(Column("worst", "Worst value", "text"), Column("gap", "Below the mean", "points")),
        Column("images", "Images", "count"),
        Column("price", "Price of a shortcut", "points", interval=True),
    )
    rows = [
        (
            *(name, label, *(scored(own, key) for key in ("within", "across", "drop")), own.worst, own.gap, own.images),
            scored(each.shortcut, "price"),
        )
        for name, labels in found.items()
        for label, each, _ in _each(labels)
        if (own := each.class_ or AcrossValues()).within is not None or each.shortcut is not None
    ]
    return Table(
        "labels_class", "Class accuracy, trained on all values of a label and on others.", columns, tuple(rows)
    )


def shortcuts(found: Mapping[str, Labels]) -> Table:
    """Class accuracy of nearest neighbours by arrangement."""
    columns = (
        *words("backbone", "label"),
        *(Column(name, heading) for name, heading in zip(ARRANGEMENTS, HEADINGS, strict=True)),
        Column("price", "Price", "points", interval=True),
        Column("images", "Images", "count"),
    )
    rows = [
        (name, label, *(getattr(own, key) for key in ARRANGEMENTS), scored(own, "price"), own.images)
        for name, labels in found.items()
        for label, each, _ in _each(labels)
        if (own := each.shortcut) is not None
    ]
    return Table("labels_shortcut", "Class accuracy of nearest neighbours by arrangement.", columns, tuple(rows))


def by_value(found: Mapping[str, Labels]) -> Table:
    """Class accuracy on each value."""
    columns = (
        *words("backbone", "label", "value"),
        *(Column("within", "All values"), Column("across", "Other values"), Column("images", "Images", "count")),
    )
    rows = [
        (name, label, value, own.within, own.across, own.images)
        for name, labels in found.items()
        for label, each, _ in _each(labels)
        for value, own in ((each.class_ or AcrossValues()).by_value or {}).items()
        if own is not None
    ]
    return Table("labels_by_value", "Class accuracy by value.", columns, tuple(rows))
