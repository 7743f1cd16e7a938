"""What a training or another head changes: scores beside others, and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from substyle.engine.report.data import Column, Scored, Table, head_name, scored, show, show_interval, words
from substyle.engine.report.findings import LEVEL, SCORES, difference
from substyle.engine.report.section import Data, Section, Text
from substyle.engine.results.model import ResultsDocument

_TOKEN_HEADS = ("linear", "mlp", "attentive", "efficient")


def gain(
    results: ResultsDocument, a: str, b: str, task: str, key: str, head: str
) -> tuple[Scored, float | None] | None:
    """Score of a minus that of b, with its interval (over transformations too where these are held out).

    Returns:
        (value, low, high), and the p value after Holm's correction; None if the two were not compared.
    """
    rows = results.compared(task, key, head)
    found = difference(rows, a, b, "two_way_ci95" if key == "held_out" else "ci95")
    if found is None:
        return None
    low, high = found[1] or (None, None)
    return (found[0], low, high), (rows.get((a, b)) or rows[b, a]).p_holm


def changed_clearly(found: Sequence[tuple[str, Scored, int]]) -> str:
    """Clause on clear differences, given as (score, difference, sign); sign 0 is not clear."""
    texts = []
    for word, sign in (("raises", 1), ("lowers", -1)):
        clear = [f"{score} ({in_points(each)})" for score, each, side in found if side == sign]
        texts += [f"{word} {', '.join(clear)}"] if clear else []
    return " and ".join(texts) or "changes no score clearly"


def in_points(estimate: Scored) -> str:
    value, low, high = estimate
    interval = "" if low is None or high is None else show_interval((low, high), "points")
    return f"{show(value, 'points')} points, {interval}"


def side(estimate: Scored) -> int:
    """Sign of an interval; 0 if it contains 0."""
    _, low, high = estimate
    return 0 if low is None or high is None or low <= 0 <= high else 1 if low > 0 else -1


def scores_of(results: ResultsDocument) -> Iterator[tuple[str, str, str]]:
    yield from SCORES
    for folder in dict.fromkeys(folder for backbone in results.ordered().values() for folder in backbone.shift or {}):
        yield f"Class, {folder}", "shift", folder


def score_of(results: ResultsDocument, name: str, task: str, key: str) -> Scored | None:
    """A score of `_scores`."""
    if task == "shift":
        return scored((results.backbones[name].shift or {}).get(key), "accuracy")
    return scored(results.probe(name, task, results.first_head()), key)


def any_late(results: ResultsDocument, task: str, *names: str) -> bool:
    """Whether a probe of a task has not converged; shifts are scored by the linear class probe."""
    task, head = ("semantic", "linear") if task == "shift" else (task, results.first_head())
    return any(results.backbones[name].unconverged(task, head) for name in names)


def attentive(results: ResultsDocument) -> Table:
    """Accuracy of all heads of backbones with tokens, and paired differences to the linear head."""
    columns = (
        *words("backbone", "tokens", "score"),
        *(Column(head, "MLP" if head == "mlp" else head.capitalize(), interval=True) for head in _TOKEN_HEADS),
        *(Column(f"{h}_gain", f"{h.capitalize()} − linear", "points", interval=True) for h in _TOKEN_HEADS[2:]),
        *words("converged"),
    )
    rows = []
    for name, backbone in results.ordered().items():
        for heading, task, key in SCORES if backbone.tokens else ():
            values = [scored(backbone.probe(task, head), key) for head in _TOKEN_HEADS]
            if any(values[2:]):
                late = [head_name(head) for head in _TOKEN_HEADS if backbone.unconverged(task, head)]
                both = [gain(results, name, name, task, key, f"{head}-linear") for head in _TOKEN_HEADS[2:]]
                gains = [found and found[0] for found in both]
                shape = f"{backbone.tokens} × {'?' if backbone.dim is None else backbone.dim}"
                rows.append((name, shape, heading, *values, *gains, f"not {', '.join(late)}" if late else "yes"))
    caption = "Probes of tokens; linear and MLP probes read the mean over tokens."
    return Table("attentive", caption, columns, tuple(rows))


def attentive_summary(results: ResultsDocument) -> str:
    """One sentence on where attention reads clearly more or less than a linear probe of the mean.

    A difference is clear if its interval excludes 0 and its p value, after Holm's correction, is below 0.05.
    """
    clauses = []
    for head in _TOKEN_HEADS[2:]:
        better, worse, count = [], [], 0
        for name, backbone in results.ordered().items():
            for heading, task, key in SCORES if backbone.tokens else ():
                late = [backbone.unconverged(task, h) for h in (head, "linear")]
                found = gain(results, name, name, task, key, f"{head}-linear")
                if found is None or found[0][1] is None or any(late):
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


def section(key: str, name: str, title: str, table: Table, summary: str, note: str) -> Section:
    """A sentence, a table and a note; nothing without rows."""
    blocks = (Text(summary), Data(table, table.caption), Text(note, note=True)) if table.rows else ()
    return Section(key, name, title, blocks)
