"""Tables and section of extractability: how easily labels are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from substyle.engine.report.data import Column, Scored, Table, Unconverged, scored, show, show_interval, words
from substyle.engine.report.section import Block, Data, Details, Section, Text
from substyle.engine.results.model import Accuracy, Estimate, Finite, Interval, Model, ResultsDocument, Share

LINEAR = "linear"
_TASKS = ("transformation", "class")


class Measured(Model):
    """How easily a task is learnt: selectivity, codelength and photographs needed."""

    accuracy: Share | None = None
    task: Estimate | None = None
    control: Estimate | None = None
    selectivity: Estimate | None = None
    memorised: Estimate | None = None
    bits: Estimate | None = None
    compression: Estimate | None = None
    uniform: Finite | None = None
    needed: Estimate | None = None
    expected: Finite | None = None
    converged: bool | None = None


class LearningCurve(Measured):
    """Accuracies by number of training photographs."""

    points: dict[str, Accuracy | None] | None = None


class Shuffled(Measured):
    """Accuracy with shuffled labels, and its range by chance."""

    range95: Interval | None = None
    at_chance: bool | None = None


class Extractability(Model):
    """How easily a probe learns a task."""

    selectivity: Measured | None = None
    codelength: Measured | None = None
    curve: LearningCurve | None = None
    shuffled: Shuffled | None = None


Results = dict[str, dict[str, Extractability | None] | None]  # by task and head


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without results."""
    table = extractability(results)
    if not table.rows:
        return
    note = (
        "Test: accuracy on test photographs, for classes on original ones. Control: accuracy on held-out variants of "
        "training photographs of probes trained on a random label per photograph, which they can only memorise "
        "(Hewitt & Liang 2019). Task accuracy: with true labels of the same training rows, for the transformation on "
        "test photographs, for class on the rows of the control; selectivity is the difference. Memorised: accuracy on "
        "training rows with a random label per row. Bits per label: online codelength (Voita & Titov 2020); "
        "compression is against the uniform code. For 90%: training photographs of a linear probe for 90% of the "
        "way from chance to its accuracy with all, interpolated in their logarithm. Shuffled: accuracy of a linear "
        "probe on shuffled labels, beside its range of 95% by chance. In small type: 95% intervals over the scored "
        f"{results.drawn()}, for given probes; of the number of photographs also over the orders in which they are "
        "drawn."
    )
    caption = "Extractability of transformation and class from each embedding"
    blocks: list[Block] = [Text(extractability_summary(results)), Data(table, caption), Text(note, note=True)]
    curves = learning_curves(results)
    if curves.rows:
        blocks.append(Details("Learning curves", (Data(curves, curves.caption),)))
    title = "Extractability: how easily is it read?"
    yield Section("extractability", "Extractability", title, tuple(blocks))


def _entries(results: ResultsDocument) -> list[tuple[str, str, str, Extractability]]:
    """(backbone, task, head, entry) of extractability."""
    return [
        (name, task, head, entry)
        for task in _TASKS
        for name, by_task in results.entries("extractability").items()
        for head, entry in (by_task.get(task) or {}).items()
        if entry
    ]


def extractability(results: ResultsDocument) -> Table:
    """How easily labels are read: control tasks, codelength, photographs needed and shuffled labels, beside chance."""
    columns = (
        *(*words("backbone", "task", "head"), Column("test", "Test", interval=True)),
        *(Column("task_accuracy", "Task accuracy", interval=True), Column("control", "Control", interval=True)),
        Column("selectivity", "Selectivity", "points", interval=True),
        Column("memorised", "Memorised", interval=True),
        Column("bits", "Bits per label", "number", interval=True),
        Column("compression", "Compression", "number", interval=True),
        Column("needed", "For 90%", "count", interval=True),
        *(Column("shuffled", "Shuffled"), Column("by_chance", "By chance", interval=True), *words("converged")),
    )
    rows: list[tuple[Any, ...]] = []
    entries = _entries(results)
    for name, task, head, entry in entries:
        key = "accuracy" if task == "transformation" else "original"
        needed = scored(entry.curve, "needed")
        parts = [part for part in (entry.selectivity, entry.codelength, entry.curve, entry.shuffled) if part]
        rows.append(
            (
                *(name, task, head),
                scored(results.probe(name, task, head), key),
                *(scored(entry.selectivity, part) for part in ("task", "control", "selectivity", "memorised")),
                *(scored(entry.codelength, part) for part in ("bits", "compression")),
                None if needed is None else tuple(None if n is None else round(n) for n in needed),
                entry.shuffled.accuracy if entry.shuffled else None,
                _by_chance(entry.shuffled),
                "no" if any(part.converged is False for part in parts) else "yes",
            )
        )
    for task in dict.fromkeys(task for _, task, _, _ in entries):
        chance = results.chance_of(task)
        codes = (entry.codelength.uniform if entry.codelength else None for _, own, _, entry in entries if own == task)
        uniform = next((code for code in codes if code is not None), None)
        if chance is not None:
            alone = (chance, None, None)
            code = [None if uniform is None else (each, None, None) for each in (uniform, 1.0)]
            memorised = alone if task == "transformation" else None
            scores = (alone, alone, alone, (0.0, None, None), memorised, *code, None, chance, None)
            rows.append(("chance", task, "–", *scores, "–"))
    return Table("extractability", "How easily labels are read from each embedding.", columns, tuple(rows))


def _by_chance(shuffled: Shuffled | None) -> Scored | None:
    """The accuracy that is expected with shuffled labels, and its range."""
    if shuffled is None or shuffled.expected is None:
        return None
    low, high = shuffled.range95 or (None, None)
    expected = (shuffled.expected, low, high)
    return Unconverged(expected) if shuffled.converged is False else expected


def extractability_summary(results: ResultsDocument) -> str:
    """Which backbone and which control take the fewest bits, and whether shuffled labels are at chance.

    Codelengths that have not converged are left out.
    """
    sentences = []
    entries = _entries(results)
    for task in _TASKS:
        found = [
            (entry.codelength.bits, name, entry.codelength)
            for name, own, head, entry in entries
            if (own, head) == (task, LINEAR) and entry.codelength and entry.codelength.converged
            if entry.codelength.bits is not None
        ]
        for kind, control in (("backbones", False), ("controls", True)):
            able = [one for one in found if bool(results.backbones[one[1]].control) is control]
            if able:
                bits, name, code = min(able, key=lambda one: one[0].value)
                uniform = "" if control else f"; uniform code {show(code.uniform, 'number')}"
                sentences.append(
                    f"{task.capitalize()} takes the fewest bits per label of all {kind} in {name}: "
                    f"{show(bits, 'number')} ({show_interval(bits.interval, 'number')}{uniform})."
                )
    flags = [(name, task, entry.shuffled.at_chance if entry.shuffled else None) for name, task, _, entry in entries]
    known = [flag for flag in flags if flag[2] is not None]
    late = ", ".join(f"{name} ({task})" for name, task, flag in known if not flag)
    if known:
        sentences.append(
            f"Probes of shuffled labels are at chance in {sum(bool(flag) for *_, flag in known)} of {len(known)} cases"
            + (f", not in {late}; one in 20 is expected not to be." if late else ".")
        )
    return " ".join(sentences)


def learning_curves(results: ResultsDocument) -> Table:
    """Test accuracy of linear probes by number of training photographs."""
    columns = (
        *(*words("backbone", "task"), Column("photographs", "Photographs", "count")),
        Column("accuracy", "Accuracy", interval=True),
    )
    rows = [
        (name, task, int(size), scored(point, "accuracy"))
        for name, task, _, entry in _entries(results)
        for size, point in ((entry.curve and entry.curve.points) or {}).items()
    ]
    return Table("learning_curves", "Accuracy of linear probes by training photographs.", columns, tuple(rows))
