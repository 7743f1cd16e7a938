"""What it costs that processing goes with the class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from substyle.engine.report.data import Column, ComparedScore, Table, scored, show, show_interval, words
from substyle.engine.report.heat_tables import heat_table
from substyle.engine.report.section import Block, Data, Heat, Section, Text
from substyle.engine.results.model import BackboneResults, Estimate, Model, ResultsDocument, Share

# accuracy if training photographs are processed as the query is: all, none, those of its class, those of other
# classes, or a random half
ARRANGEMENTS = ("baseline", "all_diff", "pos_same", "neg_same", "uniform")
HEADINGS = ("All alike", "All unlike", "Own class alike", "Other classes alike", "At random")


class TrainedOnShortcuts(Model):
    """Accuracy of class probes by correlation of transformation and class in training, and what the last one loses."""

    trained: list[Share | None] | None = None
    loss: Estimate | None = None


class Arranged(Model):
    """Accuracy of k-NN by arrangement, and the difference ``pos_same`` - ``neg_same``."""

    baseline: Share | None = None
    all_diff: Share | None = None
    pos_same: Share | None = None
    neg_same: Share | None = None
    uniform: Share | None = None
    price: Estimate | None = None


class OfTransformation(Arranged, TrainedOnShortcuts):
    """`Arranged` and `TrainedOnShortcuts` of one transformation."""


class Shortcut(TrainedOnShortcuts):
    """`OfTransformation` by transformation, and the mean price and loss over all of them."""

    correlations: list[Share] | None = None
    price: Estimate | None = None
    by_transformation: dict[str, OfTransformation | None] | None = None
    resample_by: str | None = None
    neighbours: int | None = None
    images: int | None = None
    bank: int | None = None


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """The price of all transformations."""
    found: Shortcut = backbone.entry("shortcut") or Shortcut()
    if found.price is not None:
        yield ComparedScore("shortcut", "Price of processing", found.price, images=found.images)
    if found.loss is not None:
        yield ComparedScore("shortcut_loss", "Loss in training", found.loss, images=found.images)


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without classes."""
    found: Mapping[str, Shortcut] = results.entries("shortcut")
    if not found:
        return
    first = next(iter(found.values()))
    lines = [_sentence(name, own) for name, own in found.items() if own.price is not None]
    nearest = min(first.neighbours or 0, first.bank or 0)
    note = f"Class accuracy by the {nearest} nearest of {show(first.bank, 'count')} training photographs "
    note += f"(cosine), on {show(first.images, 'count')} test photographs; queries are original and transformed in "
    note += "turn, and training photographs alike or unlike: original, or transformed by the same. The "
    note += "price is the accuracy where only the query's class is alike, minus that where only the others are. "
    by = results.drawn(first.resample_by)
    if first.correlations:
        note += "The loss is the accuracy of a ridge classifier on original and transformed test photographs, trained "
        note += "on photographs of which a random half is transformed, minus that of one trained where "
        note += f"transformation and class have the correlation {first.correlations[-1]:g}. "
    note += f"95% intervals of means are over {by} and transformations, others over {by}."
    table = arrangements(results, found)
    shown = heat_table(results, table, "price")
    blocks: list[Block] = [Text(" ".join(lines)), Data(mean_over(found))]
    if shown is not None:
        lost = heat_table(results, table, "loss")
        parts = (("Price", "", shown), *((("Loss in training", "", lost),) if lost is not None else ()))
        blocks.append(Heat(parts, "Price and loss by transformation and backbone"))
    blocks.append(Data(table, hidden=True))
    yield Section(
        "shortcut", "Shortcuts", "Shortcuts: what if processing goes with the class?", (*blocks, Text(note, note=True))
    )


def _sentence(name: str, found: Shortcut) -> str:
    """What one backbone loses, over all transformations and with the dearest one."""
    rows = {t: row for t, row in (found.by_transformation or {}).items() if row is not None}
    prices = {t: row.price.value for t, row in rows.items() if row.price is not None}
    if not prices:
        return ""
    dearest = max(prices, key=lambda t: prices[t])
    ends = f" ({show_interval(found.price, 'points')})" if found.price and found.price.interval else ""
    text = f"{name}: if a transformation goes with the class, accuracy differs by {show(found.price, 'points')} points"
    text += f"{ends} on average, and by {show(prices[dearest], 'points')} for {dearest}"
    lost = {t: row.loss.value for t, row in rows.items() if t in prices and row.loss is not None}
    if not lost:
        return f"{text}."
    most = max(lost, key=lambda t: lost[t])
    ends = f" ({show_interval(found.loss, 'points')})" if found.loss and found.loss.interval else ""
    text += f"; a probe trained so loses {show(found.loss, 'points')} points{ends} on average"
    return f"{text}, and {show(lost[most], 'points')} with {most}."


def mean_over(found: Mapping[str, Shortcut]) -> Table:
    """Mean over transformations of each arrangement, and of probes trained at each correlation."""
    correlations = next(iter(found.values())).correlations or []
    columns = (
        *words("backbone"),
        *(Column(name, heading) for name, heading in zip(ARRANGEMENTS, HEADINGS, strict=True)),
        Column("price", "Price", "points", interval=True),
        *(Column(f"trained_{r:g}", f"Trained at {r:g}") for r in correlations),
        Column("loss", "Loss", "points", interval=True),
    )
    rows = []
    for name, own in found.items():
        known = [row for row in (own.by_transformation or {}).values() if row is not None]
        means = []
        for arrangement in ARRANGEMENTS:
            values = [value for row in known if (value := getattr(row, arrangement)) is not None]
            means.append(sum(values) / len(values) if values else None)
        trained = own.trained or []
        trained = trained if len(trained) == len(correlations) else [None] * len(correlations)
        price, loss = (scored(own, key) for key in ("price", "loss"))
        rows.append((name, *means, price, *trained, loss))
    return Table("shortcuts", "Class accuracy, mean over transformations.", columns, tuple(rows))


def arrangements(results: ResultsDocument, found: Mapping[str, Shortcut]) -> Table:
    """Each arrangement by transformation."""
    columns = (
        *words("backbone", "transformation"),
        *(Column(name, heading) for name, heading in zip(ARRANGEMENTS, HEADINGS, strict=True)),
        Column("price", "Price", "points", interval=True),
        Column("loss", "Loss", "points", interval=True),
    )
    rows = [
        (name, t, *(getattr(row, each) for each in ARRANGEMENTS), scored(row, "price"), scored(row, "loss"))
        for name, own in found.items()
        for t, row in (own.by_transformation or {}).items()
        if row is not None
    ]
    return Table("shortcuts_by_transformation", "Class accuracy by transformation.", columns, tuple(rows))
