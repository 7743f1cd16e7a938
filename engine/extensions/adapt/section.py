"""What adapters change: scores before and after, and paired differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from substyle.engine.report import gains
from substyle.engine.report.data import Column, Table, words
from substyle.engine.report.findings import LEVEL, SCORES
from substyle.engine.report.gains import any_late, changed_clearly, gain, score_of, scores_of
from substyle.engine.report.section import Section
from substyle.engine.results.model import ResultsDocument


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without trained backbones."""
    note = "Adapters are trained on training photographs and on transformations that are not held out. Differences are "
    note += (
        f"paired, with 95% intervals over {results.drawn()}; those of held-out transformations over {results.drawn()} "
    )
    note += "and transformations. The sentence counts differences that are significant at 5% after Holm's correction."
    title = "Adapters: transformation and class in one embedding?"
    table = adapters(results)
    if table.rows:
        yield gains.section("adapters", "Adapters", title, table, adapters_summary(results), note)


def adapters(results: ResultsDocument) -> Table:
    """Scores of the first head before and after adaptation, and their paired differences."""
    columns = (
        *words("backbone", "method", "score"),
        *(Column("before", "Backbone", interval=True), Column("after", "Adapted", interval=True)),
        *(Column("difference", "Difference", "points", interval=True), *words("converged")),
    )
    rows: list[tuple[Any, ...]] = []
    for name, base, method in _pairs(results):
        for heading, task, key in scores_of(results):
            before, after = (score_of(results, each, task, key) for each in (base, name))
            if before is not None and after is not None:
                found = gain(results, name, base, task, key, results.first_head())
                late = "no" if any_late(results, task, base, name) else "yes"
                rows.append((base, method, heading, before, after, found and found[0], late))
    caption = f"{results.first_head()} probes of backbones and of their adapted embeddings."
    return Table("adapters", caption, columns, tuple(rows))


def adapters_summary(results: ResultsDocument) -> str:
    """One sentence for each adapter: which scores it clearly raises and lowers, after Holm's correction."""
    sentences = []
    for name, base, method in _pairs(results):
        clear = []
        for heading, task, key in SCORES:
            found = gain(results, name, base, task, key, results.first_head())
            if found and found[1] is not None and found[1] < LEVEL and not any_late(results, task, name, base):
                clear.append((heading.lower(), found[0], 1 if found[0][0] > 0 else -1))
        sentences.append(f"{method} on {base} {changed_clearly(clear)}.")
    return " ".join(sentences)


def _pairs(results: ResultsDocument) -> list[tuple[str, str, str]]:
    """(adapted backbone, its backbone, method) where both are in the results."""
    found = []
    for name, backbone in results.ordered().items():
        adapter = backbone.adapter
        if adapter and adapter.backbone in results.backbones:
            found.append((name, adapter.backbone, str(adapter.method)))
    return found
