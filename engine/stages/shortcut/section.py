"""What it costs that processing goes with the class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from substyle.engine.report.data import Column, ComparedScore, Table, scored, show, show_interval, words
from substyle.engine.report.heat_tables import heat_table
from substyle.engine.report.section import Block, Data, Heat, Section, Text
from substyle.engine.results.model import BackboneResults, Finite, Interval, Model, ResultsDocument, Share

# accuracy if training photographs are processed as the query is: all, none, those of its class, those of other
# classes, or a random half
ARRANGEMENTS = ("baseline", "all_diff", "pos_same", "neg_same", "uniform")
_HEADINGS = ("All alike", "All unlike", "Own class alike", "Other classes alike", "At random")


class Arranged(Model):
    """Accuracy of k-NN by arrangement, and the difference ``pos_same`` - ``neg_same``."""

    baseline: Share | None = None
    all_diff: Share | None = None
    pos_same: Share | None = None
    neg_same: Share | None = None
    uniform: Share | None = None
    price: Finite | None = None
    price_ci95: Interval | None = None


class Shortcut(Model):
    """`Arranged` by transformation, and the mean price over all of them."""

    price: Finite | None = None
    price_ci95: Interval | None = None
    price_two_way_ci95: Interval | None = None
    by_transformation: dict[str, Arranged | None] | None = None
    resample_by: str | None = None
    neighbours: int | None = None
    images: int | None = None
    bank: int | None = None


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """The price of all transformations."""
    found: Shortcut = backbone.entry("shortcut") or Shortcut()
    if found.price is not None:
        yield ComparedScore("shortcut", "Price of processing", found.price, found.price_two_way_ci95)


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without classes."""
    found: Mapping[str, Shortcut] = results.entries("shortcut")
    if not found:
        return
    first = next(iter(found.values()))
    lines = [_sentence(name, own) for name, own in found.items() if own.price is not None]
    nearest = min(first.neighbours or 0, first.bank or 0)
    note = f"Class accuracy by the {nearest} nearest of {show(first.bank, 'count')} training photographs "
    note += f"(cosine), on {show(first.images, 'count')} test photographs; queries are unchanged and transformed in "
    note += "turn, and training photographs processed alike or unlike: unchanged or by the one transformation. The "
    note += "price is the accuracy where only the query's class is alike, minus that where only the others are. "
    by = results.drawn(first.resample_by)
    note += f"95% intervals of means are over {by} and transformations, others over {by}."
    table = arrangements(results, found)
    shown = heat_table(results, table, "price")
    blocks: list[Block] = [Text(" ".join(lines)), Data(mean_over(found))]
    if shown is not None:
        blocks.append(Heat((("Price", "", shown),), "Price by transformation and backbone"))
    blocks.append(Data(table, hidden=True))
    yield Section(
        "shortcut", "Shortcuts", "Shortcuts: what if processing goes with the class?", (*blocks, Text(note, note=True))
    )


def _sentence(name: str, found: Shortcut) -> str:
    """What one backbone loses, over all transformations and with the dearest one."""
    known = {t: row for t, row in (found.by_transformation or {}).items() if row is not None and row.price is not None}
    if not known:
        return ""
    dearest = max(known, key=lambda t: known[t].price or 0.0)
    ends = f" ({show_interval(found.price_two_way_ci95, 'points')})" if found.price_two_way_ci95 else ""
    worst = known[dearest]
    text = f"{name}: if a transformation goes with the class, accuracy differs by {show(found.price, 'points')} points"
    return f"{text}{ends} on average, and by {show(worst.price, 'points')} for {dearest}."


def mean_over(found: Mapping[str, Shortcut]) -> Table:
    """Mean over transformations of each arrangement."""
    columns = (
        *words("backbone"),
        *(Column(name, heading) for name, heading in zip(ARRANGEMENTS, _HEADINGS, strict=True)),
        Column("price", "Price", "points", interval=True),
    )
    rows = []
    for name, own in found.items():
        known = [row for row in (own.by_transformation or {}).values() if row is not None]
        means = []
        for arrangement in ARRANGEMENTS:
            values = [value for row in known if (value := getattr(row, arrangement)) is not None]
            means.append(sum(values) / len(values) if values else None)
        rows.append((name, *means, scored(own, "price", "price_two_way_ci95")))
    return Table("shortcuts", "Class accuracy by nearest neighbours, mean over transformations.", columns, tuple(rows))


def arrangements(results: ResultsDocument, found: Mapping[str, Shortcut]) -> Table:
    """Each arrangement by transformation."""
    columns = (
        *words("backbone", "transformation"),
        *(Column(name, heading) for name, heading in zip(ARRANGEMENTS, _HEADINGS, strict=True)),
        Column("price", "Price", "points", interval=True),
    )
    rows = [
        (name, t, *(getattr(row, arrangement) for arrangement in ARRANGEMENTS), scored(row, "price"))
        for name, own in found.items()
        for t, row in (own.by_transformation or {}).items()
        if row is not None
    ]
    return Table("shortcuts_by_transformation", "Class accuracy by nearest neighbours.", columns, tuple(rows))
