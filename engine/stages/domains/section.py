"""Transfer of probes between domains."""

from __future__ import annotations

from collections.abc import Iterator

from substyle.engine.report.data import Column, Results, Table, dig, ordered, real, show, words
from substyle.engine.report.findings import SCORES, task_score
from substyle.engine.report.section import Data, Section, Text, drawn


def sections(results: Results) -> Iterator[Section]:
    """The section; none without domains."""
    table = domains(results)
    if not table.rows:
        return
    note = (
        f"Scored on test photographs of each domain, with 95% intervals over {drawn(results)}. Class: on photographs "
    )
    note += "of classes that the probe knows; between domains, classes without names, only numbers, are not compared."
    blocks = Text(domains_summary(results)), Data(table, table.caption), Text(note, note=True)
    yield Section("domains", "Domains", "Domains: do probes transfer?", blocks)


def domains(results: Results) -> Table:
    """Scores of linear probes by training domain, a column for each test domain."""
    every = [dig(results, "backbones", backbone, "domains") or {} for backbone in ordered(results)]
    cells = [cell for tasks in every for task in tasks.values() for cell in task.items()]
    names = list(dict.fromkeys(name for trained, row in cells for name in (trained, *row)))  # the study's own first
    columns = (
        *(*words("backbone", "score"), Column("trained", "Trained on", "text")),
        *(Column(f"on_{name}", name, interval=True) for name in names),
    )
    rows = []
    for backbone in ordered(results):
        for heading, task, key in SCORES:
            for trained, row in (dig(results, "backbones", backbone, "domains", task) or {}).items():
                values = [task_score(row.get(name), task, key) for name in names]
                if any(values):
                    rows.append((backbone, heading, trained, *values))
    caption = "Accuracy of linear probes: trained on one domain, scored on another."
    return Table("domains", caption, columns, tuple(rows))


def domains_summary(results: Results) -> str:
    """Which style transfers worst, for each trained backbone, and which transformation loses most.

    Probes that have not converged are left out.
    """
    sentences = []
    for backbone in real(results):
        cells = dig(results, "backbones", backbone, "domains", "fine") or {}
        lost: list[tuple[float, str, str]] = []
        for trained, row in cells.items():
            for tested, cell in row.items():
                both = dig(cells, tested, tested), cell
                own, other = (dig(each, "accuracy") if dig(each, "converged") is not False else None for each in both)
                if tested != trained and own is not None and other is not None:
                    lost.append((other - own, trained, tested))
        if not lost:
            continue
        change, trained, tested = min(lost)
        text = f"Style of {backbone} transfers worst from {trained} to {tested}: {show(change, 'points')} points"
        text += f" against a probe of {tested}"
        text += f", the lowest of {len(lost)} differences" if len(lost) > 1 else ""
        own, other = (dig(cells, each, tested, "by_transformation") or {} for each in (tested, trained))
        drops = [(other[t] - own[t], t) for t in own if own[t] is not None and other.get(t) is not None]
        if drops and min(drops)[0] < 0:
            text += f", most for {min(drops)[1]} ({show(min(drops)[0], 'points')}, the lowest of {len(drops)})"
        sentences.append(f"{text}.")
    return " ".join(sentences)
