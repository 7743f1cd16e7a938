"""Scores of probes of tokens beside linear probes of their mean, and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from substyle.engine.report import gains
from substyle.engine.report.data import Column, Scored, Table, head_name, scored, words
from substyle.engine.report.findings import LEVEL, SCORES
from substyle.engine.report.gains import in_points, side
from substyle.engine.report.section import Section
from substyle.engine.results.model import (
    GroupedScores,
    Model,
    PairComparison,
    PlainScores,
    ProbeScores,
    ResultsDocument,
)

HEADS = ("linear", "attentive", "efficient")


class Attentive(Model):
    """Scores of probes by task and head: of P tokens of ``dim`` numbers, and linear of their mean."""

    tokens: int
    dim: int
    transformation: dict[str, PlainScores] | None = None
    kind: dict[str, GroupedScores] | None = None
    class_: dict[str, PlainScores] | None = Field(default=None, alias="class")

    def probe(self, task: str, head: str) -> ProbeScores | None:
        """The probe of a task with a head; None if missing."""
        found: Mapping[str, ProbeScores] = self.entry(task) or {}
        return found.get(head)

    def late(self, task: str, *heads: str) -> list[str]:
        """Heads that have not converged."""
        found = ((head, self.probe(task, head)) for head in heads)
        return [head for head, probe in found if probe is not None and probe.unconverged]


class Differences(Model):
    """Differences of heads to the linear probe of the mean, as in ``comparisons``."""

    differences: list[PairComparison] | None = None


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without probes of tokens."""
    note = "Attentive: one learned query with keys and values, in several attention heads, then a linear classifier. "
    note += "Efficient: several learned queries without keys (Psomas et al. 2026). Differences to the linear probe are "
    note += f"paired, with 95% intervals over {results.drawn()}; those of held-out transformations over "
    note += f"{results.drawn()} and transformations."
    title, table = "Attentive probes: is it in the tokens?", attentive(results)
    if table.rows:
        yield gains.section("attentive", "Attentive probes", title, table, attentive_summary(results), note)


def attentive(results: ResultsDocument) -> Table:
    """Accuracy of all heads, and paired differences to the linear head."""
    columns = (
        *words("backbone", "tokens", "score"),
        *(Column(head, head.capitalize(), interval=True) for head in HEADS),
        *(Column(f"{head}_gain", f"{head.capitalize()} − linear", "points", interval=True) for head in HEADS[1:]),
        *words("converged"),
    )
    rows = []
    entries: Mapping[str, Attentive] = results.entries("attentive")
    for name, own in entries.items():
        for heading, task, key in SCORES:
            values = [scored(own.probe(task, head), key) for head in HEADS]
            if any(values[1:]):
                late = [head_name(head) for head in own.late(task, *HEADS)]
                found = [_gain(results, name, task, key, head) for head in HEADS[1:]]
                shape = f"{own.tokens} × {own.dim}"
                differences = [each and each[0] for each in found]
                rows.append((name, shape, heading, *values, *differences, f"not {', '.join(late)}" if late else "yes"))
    return Table("attentive", "Probes of tokens, and linear probes of their mean.", columns, tuple(rows))


def _gain(results: ResultsDocument, name: str, task: str, key: str, head: str) -> tuple[Scored, float | None] | None:
    """Difference to the linear head with its interval, over transformations too where these are held out, and p."""
    whole: Differences = results.entry("attentive") or Differences()
    for row in whole.differences or []:
        if (row.a, row.task, row.metric, row.head) == (name, task, key, f"{head}-linear"):
            own = row.difference
            return (own.value, own.low, own.high), row.p_holm
    return None


def attentive_summary(results: ResultsDocument) -> str:
    """One sentence on where attention reads clearly more or less than a linear probe of the mean.

    A difference is clear if its interval excludes 0 and its p value, after Holm's correction, is below 0.05.
    """
    clauses = []
    entries: Mapping[str, Attentive] = results.entries("attentive")
    for head in HEADS[1:]:
        better, worse, count = [], [], 0
        for name, own in entries.items():
            for heading, task, key in SCORES:
                found = _gain(results, name, task, key, head)
                if found is None or found[0][1] is None or own.late(task, head, "linear"):
                    continue
                count += 1
                where = f"{heading.lower()} of {name} ({in_points(found[0])})"
                if found[1] is not None and found[1] < LEVEL:
                    if side(found[0]) > 0:
                        better.append((-found[0][0], where))
                    elif side(found[0]) < 0:
                        worse.append((found[0][0], where))
        if count:
            text = f"{head} probes are clearly better in {len(better)} of {count} scores"
            text += f", most for {min(better)[1]}" if better else ""
            text += f", and clearly worse in {len(worse)}" + (f", most for {min(worse)[1]}" if worse else "")
            clauses.append(text)
    if not clauses:
        return "No attentive probe and its linear probe have converged, so they are not compared."
    return f"Compared with linear probes of the mean over tokens, {'; '.join(clauses)}."
