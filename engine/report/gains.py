"""What a training or another head changes: scores beside others, and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from substyle.engine.report.data import Scored, Table, cell_of, scored, show, show_interval
from substyle.engine.report.findings import SCORES, difference
from substyle.engine.report.section import Data, Section, Text
from substyle.engine.results.model import ResultsDocument


def gain(
    results: ResultsDocument, a: str, b: str, task: str, key: str, head: str
) -> tuple[Scored, float | None] | None:
    """Score of a minus that of b, with its interval (over transformations too where these are held out).

    Returns:
        (value, low, high), and the p value after Holm's correction; None if the two were not compared.
    """
    rows = results.compared(task, key, head)
    found = cell_of(difference(rows, a, b))
    return None if found is None else (found, (rows.get((a, b)) or rows[b, a]).p_holm)


def changed_clearly(found: Sequence[tuple[str, Scored, int]]) -> str:
    """Clause on clear differences, given as (score, difference, sign); sign 0 is not clear."""
    texts = []
    for word, sign in (("raises", 1), ("lowers", -1)):
        clear = [f"{score} ({in_points(each)})" for score, each, side in found if side == sign]
        texts += [f"{word} {', '.join(clear)}"] if clear else []
    return " and ".join(texts) or "changes no score clearly"


def in_points(estimate: Scored) -> str:
    """A difference in points, with its interval."""
    value, low, high = estimate
    interval = "" if low is None or high is None else show_interval((low, high), "points")
    return f"{show(value, 'points')} points, {interval}"


def side(estimate: Scored) -> int:
    """Sign of an interval; 0 if it contains 0."""
    _, low, high = estimate
    return 0 if low is None or high is None or low <= 0 <= high else 1 if low > 0 else -1


def scores_of(results: ResultsDocument) -> Iterator[tuple[str, str, str]]:
    """Heading, task and key of the scores of probes, and of classes under each shift."""
    yield from SCORES
    for folder in dict.fromkeys(folder for backbone in results.ordered().values() for folder in backbone.shift or {}):
        yield f"Class, {folder}", "shift", folder


def score_of(results: ResultsDocument, name: str, task: str, key: str) -> Scored | None:
    """A score of `scores_of`."""
    if task == "shift":
        return scored((results.backbones[name].shift or {}).get(key), "accuracy")
    return scored(results.probe(name, task, results.first_head()), key)


def any_late(results: ResultsDocument, task: str, *names: str) -> bool:
    """Whether a probe of a task has not converged; shifts are scored by the linear class probe."""
    task, head = ("class", "linear") if task == "shift" else (task, results.first_head())
    return any(results.backbones[name].unconverged(task, head) for name in names)


def section(key: str, name: str, title: str, table: Table, summary: str, note: str) -> Section:
    """A sentence, a table and a note; nothing without rows."""
    blocks = (Text(summary), Data(table, table.caption), Text(note, note=True)) if table.rows else ()
    return Section(key, name, title, blocks)
