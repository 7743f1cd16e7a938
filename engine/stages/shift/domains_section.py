"""Transfer of probes between domains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from substyle.engine.report.data import Column, ComparedScore, Table, scored, show, words
from substyle.engine.report.findings import SCORES
from substyle.engine.report.section import Data, Section, Text
from substyle.engine.results.model import BackboneResults, DomainScores, PlainScores, ResultsDocument


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without domains."""
    table = domains(results)
    if not table.rows:
        return
    note = (
        f"Scored on test photographs of each domain, with 95% intervals over {results.drawn()}. Class: on photographs "
    )
    note += "of classes that the probe knows; between domains, classes without names, only numbers, are not compared."
    blocks = Text(domains_summary(results)), Data(table, table.caption), Text(note, note=True)
    yield Section("domains", "Domains", "Domains: do probes transfer?", blocks)


def scores(backbone: BackboneResults) -> Iterator[ComparedScore]:
    """Accuracies of linear probes on the test photographs of other domains."""
    found: DomainScores = backbone.domains or {}
    for heading, task, name in SCORES:
        for trained, row in _cells(found, task).items():
            for tested, probe in row.items():
                if probe and tested != trained and (value := getattr(probe, name)) is not None:
                    key = f"{task}_{name}_{trained}_{tested}"
                    title = f"{heading}, {trained} to {tested}"
                    yield ComparedScore(key, title, value, not probe.unconverged, probe.images)


def _found(results: ResultsDocument) -> Mapping[str, DomainScores]:
    return results.entries("domains")


def _cells(found: DomainScores, task: str) -> dict[str, dict[str, PlainScores | None]]:
    """Scores of the probes of a task by training domain, then by test domain."""
    return {trained: row or {} for trained, row in (found.get(task) or {}).items()}


def domains(results: ResultsDocument) -> Table:
    """Scores of linear probes by training domain, a column for each test domain."""
    every = [_cells(found, task) for found in _found(results).values() for task in found]
    cells = [cell for rows in every for cell in rows.items()]
    names = list(dict.fromkeys(name for trained, row in cells for name in (trained, *row)))  # the study's own first
    columns = (
        *(*words("backbone", "score"), Column("trained", "Trained on", "text")),
        *(Column(f"on_{name}", name, interval=True) for name in names),
    )
    rows = []
    for own, found in _found(results).items():
        for heading, task, key in SCORES:
            for trained, row in _cells(found, task).items():
                values = [scored(row.get(name), key) for name in names]
                if any(values):
                    rows.append((own, heading, trained, *values))
    caption = "Accuracy of linear probes: trained on one domain, scored on another."
    return Table("domains", caption, columns, tuple(rows))


def domains_summary(results: ResultsDocument) -> str:
    """Which probe of transformations transfers worst, for each trained backbone, and which transformation loses most.

    Probes that have not converged are left out.
    """
    sentences = []
    for name in results.real():
        cells = _cells(_found(results).get(name, {}), "transformation")
        lost: list[tuple[float, str, str]] = []
        for trained, row in cells.items():
            for tested, cell in row.items():
                both = cells.get(tested, {}).get(tested), cell
                own, other = (None if each is None or each.unconverged else each.accuracy for each in both)
                if tested != trained and own is not None and other is not None:
                    lost.append((other.value - own.value, trained, tested))
        if not lost:
            continue
        change, trained, tested = min(lost)
        text = (
            f"The transformation probe of {name} transfers worst from {trained} to {tested}: {show(change, 'points')} "
        )
        text += f"points against a probe of {tested}"
        text += f", the lowest of {len(lost)} differences" if len(lost) > 1 else ""
        probes = (cells[each].get(tested) for each in (tested, trained))
        before, after = ((probe and probe.by_transformation) or {} for probe in probes)
        pairs = ((before[t], after.get(t), t) for t in before)
        drops = [(then - now, t) for now, then, t in pairs if now is not None and then is not None]
        if drops and min(drops)[0] < 0:
            text += f", most for {min(drops)[1]} ({show(min(drops)[0], 'points')}, the lowest of {len(drops)})"
        sentences.append(f"{text}.")
    return " ".join(sentences)
