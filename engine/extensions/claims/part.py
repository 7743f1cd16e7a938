"""The entry ``claims`` of results.json, and its section of the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from substyle.engine.extensions.claims.claims import NOT_TESTABLE, Claim, claims
from substyle.engine.report.data import Column, Kind, Table, show, show_interval, words
from substyle.engine.report.parts import ReportPart, register_part
from substyle.engine.report.section import Block, Data, Details, Section, Text
from substyle.engine.results.model import ResultsDocument

_ABOUT = (
    "Verdicts on six claims of Substance or Style: What Does Your Image Embedding Know? (arXiv 2307.05610). Supported: "
    "all relevant intervals are on the side of the claim; contradicted: on the other side; undecided: neither, or a "
    "probe has not converged, or there are too few photographs. Verdicts apply only to these backbones, photographs "
    "and transformations."
)
_NOTE = (
    "Difference: first group minus second, mean over pairs, in points of accuracy; C4: MLP minus linear probe; C5: in "
    "sensitivity; C6: rank correlation. Interval: from the lowest lower to the highest upper end of the pairs' 95% "
    "intervals, over {drawn} and transformations."
)


def entry(results: ResultsDocument) -> list[dict[str, Any]]:
    """The claims as JSON."""
    return [claim.model_dump() for claim in claims(results)]


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section of the claims, if there are any."""
    if (table := claims_table(results)).rows:
        tested = replace(table, rows=tuple(row for row in table.rows if row[2] != NOT_TESTABLE))
        blocks: list[Block] = [Text(_ABOUT), Data(table, hidden=True)]
        if tested.rows:
            blocks.append(Data(tested, "Claims of the paper", saved=False))
            blocks.append(Text(_NOTE.format(drawn=results.drawn()), note=True))
        if rest := [row for row in table.rows if row[2] == NOT_TESTABLE]:
            listed = tuple(Text(f"{name}: {statement} {why}.") for name, statement, *_, why in rest)
            blocks.append(Details(f"Not testable here: {', '.join(row[0] for row in rest)}", listed))
        yield Section("claims", "Claims", "Claims of the paper: do they hold here?", tuple(blocks))


def claims_table(results: ResultsDocument) -> Table:
    """Verdicts on the claims of the paper."""
    columns = (
        Column("id", "Claim", "text"),
        *words("statement"),
        Column("status", "Verdict", "text"),
        *words("difference", "interval", "backbones", "why"),
    )
    rows = []
    for row in results.entry("claims") or []:
        kind: Kind = "points" if row.unit in ("points", None) else "number"
        groups = [
            f"{name.replace('_', '-')}: {', '.join(members or []) or 'none'}"
            for name, members in (row.groups or {}).items()
        ]
        shown = show(row.estimate, kind), show_interval(row.estimate, kind)
        reasons = "; ".join(row.reasons or [])
        rows.append((row.id, row.statement, row.status, *shown, "; ".join(groups) or "–", reasons))
    return Table("claims", "Claims of the paper.", columns, tuple(rows))


register_part(ReportPart("claims", list[Claim], entry, sections))
