"""What adapters, fine-tuning and attention over tokens change: scores beside others, and paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from math import hypot
from typing import Any

import numpy as np
from scipy.special import stdtrit

from substyle.engine.report.data import Column, Scored, Table, head_name, scored, show, show_interval, words
from substyle.engine.report.findings import LEVEL, SCORES, difference
from substyle.engine.results.model import ResultsDocument

_CLASS = "semantic"  # the objective that others are compared with
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


def _changes(found: Sequence[tuple[str, Scored, int]]) -> str:
    """Clause on clear differences, given as (score, difference, sign); sign 0 is not clear."""
    texts = []
    for word, sign in (("raises", 1), ("lowers", -1)):
        clear = [f"{score} ({_points(each)})" for score, each, side in found if side == sign]
        texts += [f"{word} {', '.join(clear)}"] if clear else []
    return " and ".join(texts) or "changes no score clearly"


def _points(estimate: Scored) -> str:
    value, low, high = estimate
    interval = "" if low is None or high is None else show_interval((low, high), "points")
    return f"{show(value, 'points')} points, {interval}"


def adapters(results: ResultsDocument) -> Table:
    """Scores of the first head before and after adaptation, and their paired differences."""
    columns = (
        *words("backbone", "method", "score"),
        *(Column("before", "Backbone", interval=True), Column("after", "Adapted", interval=True)),
        *(Column("difference", "Difference", "points", interval=True), *words("converged")),
    )
    rows: list[tuple[Any, ...]] = []
    for name, base, method in _pairs(results):
        for heading, task, key in _scores(results):
            before, after = (_scored(results, each, task, key) for each in (base, name))
            if before is not None and after is not None:
                found = gain(results, name, base, task, key, results.first_head())
                late = "no" if _late(results, task, base, name) else "yes"
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
            if found and found[1] is not None and found[1] < LEVEL and not _late(results, task, name, base):
                clear.append((heading.lower(), found[0], 1 if found[0][0] > 0 else -1))
        sentences.append(f"{method} on {base} {_changes(clear)}.")
    return " ".join(sentences)


def _pairs(results: ResultsDocument) -> list[tuple[str, str, str]]:
    """(adapted backbone, its backbone, method) where both are in the results."""
    found = []
    for name, backbone in results.ordered().items():
        adapter = backbone.adapter
        if adapter and adapter.backbone in results.backbones:
            found.append((name, adapter.backbone, str(adapter.method)))
    return found


def finetuned(results: ResultsDocument) -> Table:
    """Scores of linear probes before and after fine-tuning: mean over seeds, and differences."""
    columns = (
        *words("backbone", "objective", "score"),
        *(Column("seeds", "Seeds", "count"), Column("before", "Before"), Column("after", "After")),
        Column("change", "Change", "points", interval=True),
        *(Column("difference", "Against class alone", "points", interval=True), *words("converged")),
    )
    rows: list[tuple[Any, ...]] = []
    for (base, title), trained in _trained(results).items():
        for objective, (heading, task, key) in product(trained, _scores(results)):
            names = list(trained[objective].values())
            after = [score[0] for name in names if (score := _scored(results, name, task, key)) is not None]
            if len(after) < len(names):
                continue
            alone = trained.get(_CLASS, {}) if objective != _CLASS else {}
            both = [(name, alone[seed]) for seed, name in trained[objective].items() if seed in alone]
            change = _difference(results, [(name, base) for name in names], task, key)
            against = _difference(results, both, task, key)
            mean = float(np.mean(np.array(after, np.float64)))
            before = _scored(results, base, task, key)
            late = "no" if _late(results, task, base, *names, *(other for _, other in both)) else "yes"
            rows.append((title, objective, heading, len(names), before and before[0], mean, change, against, late))
    caption = f"{head_name(results.first_head()).capitalize()} probes of backbones before and after fine-tuning, "
    caption += "mean over seeds."
    return Table("finetuned", caption, columns, tuple(rows))


def finetuned_summary(results: ResultsDocument) -> str:
    """For each backbone and objective, the scores whose interval against training on the class alone excludes 0.

    Scores of probes that have not converged are left out.
    """
    table, sentences = finetuned(results), []
    for base, objective in dict.fromkeys((row[0], row[1]) for row in table.rows):
        rows = [row for row in table.rows if row[:2] == (base, objective) and row[-2] and row[-1] == "yes"]
        if not rows:
            continue
        found = [(row[2][:1].lower() + row[2][1:], row[-2], _side(row[-2])) for row in rows]
        what = "the transformation alone" if objective == "transformation" else "class and transformation"
        sentences.append(f"Compared with the class alone, training {base} on {what} {_changes(found)}.")
    return " ".join(sentences)


def _side(estimate: Scored) -> int:
    """Sign of an interval; 0 if it contains 0."""
    _, low, high = estimate
    return 0 if low is None or high is None or low <= 0 <= high else 1 if low > 0 else -1


def _trained(results: ResultsDocument) -> dict[tuple[str, str], dict[str, dict[int, str]]]:
    """Names of fine-tuned backbones by backbone and its title, objective and seed, if the backbone is in the results.

    Trainings with other settings are not compared: each has the settings in its title.
    """
    found: dict[tuple[str, str], dict[str, dict[int, str]]] = {}
    for name, backbone in results.ordered().items():
        tuned = backbone.facts.finetuned
        if tuned and tuned.backbone in results.backbones:
            settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in (tuned.settings or {}).items())
            each = found.setdefault((tuned.backbone, settings), {})
            each.setdefault(tuned.objective, {})[tuned.seed] = name
    times = Counter(base for base, _ in found)
    return {(base, f"{base} ({how})" if times[base] > 1 else base): each for (base, how), each in found.items()}


def _scores(results: ResultsDocument) -> Iterator[tuple[str, str, str]]:
    yield from SCORES
    for folder in dict.fromkeys(folder for backbone in results.ordered().values() for folder in backbone.shift or {}):
        yield f"Class, {folder}", "shift", folder


def _scored(results: ResultsDocument, name: str, task: str, key: str) -> Scored | None:
    """A score of `_scores`."""
    if task == "shift":
        return scored((results.backbones[name].shift or {}).get(key), "accuracy")
    return scored(results.probe(name, task, results.first_head()), key)


def _late(results: ResultsDocument, task: str, *names: str) -> bool:
    """Whether a probe of a task has not converged; shifts are scored by the linear class probe."""
    task, head = ("semantic", "linear") if task == "shift" else (task, results.first_head())
    return any(results.backbones[name].unconverged(task, head) for name in names)


def _difference(results: ResultsDocument, pairs: Sequence[tuple[str, str]], task: str, key: str) -> Scored | None:
    """Mean difference over seeds, with a 95% interval from seeds (Student) and photographs, added in quadrature.

    The part of the photographs is the mean half-width of the pairs' intervals, which the mean over seeds cannot exceed.
    """
    values: list[float] = []
    halves: list[float] = []
    for a, b in pairs:
        if task == "shift":
            estimate = _unpaired(results, a, b, key)
        else:
            found = gain(results, a, b, task, key, results.first_head())
            estimate = found and found[0]
        if estimate is None or estimate[1] is None or estimate[2] is None:
            return None
        values.append(estimate[0])
        halves.append((estimate[2] - estimate[1]) / 2)
    if not values:
        return None
    mean, half = float(np.mean(values)), float(np.mean(halves))
    if len(values) > 1:
        half = float(np.hypot(half, stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / len(values) ** 0.5))
    return mean, mean - half, mean + half


def _unpaired(results: ResultsDocument, a: str, b: str, folder: str) -> Scored | None:
    """Difference of accuracies after a shift, whose interval ignores that the photographs are the same."""
    halves: list[float] = []
    values: list[float] = []
    for name in (a, b):
        score = _scored(results, name, "shift", folder)
        if score is None or score[1] is None or score[2] is None:
            return None
        values.append(score[0])
        halves.append((score[2] - score[1]) / 2)
    change, half = values[0] - values[1], hypot(*halves)
    return change, change - half, change + half


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
                where = f"{heading.lower()} of {name} ({_points(found[0])})"
                if found[1] is not None and found[1] < LEVEL:
                    if _side(found[0]) > 0:
                        better.append((-found[0][0], where))
                    elif _side(found[0]) < 0:
                        worse.append((found[0][0], where))
        if count:
            text = f"{head} probes are clearly better in {len(better)} of {count} scores"
            text += f", most for {min(better)[1]}" if better else ""
            text += f", and clearly worse in {len(worse)}" + (f", most for {min(worse)[1]}" if worse else "")
            clauses.append(text)
    if not clauses:
        return "No attentive probe and its linear probe have converged, so they are not compared."
    return f"Compared with linear probes of the mean over tokens, {'; '.join(clauses)}."
