"""What fine-tuning changes: scores before and after, and differences between objectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from math import hypot
from typing import Any

import numpy as np
from scipy.special import stdtrit

from substyle.engine.report import gains
from substyle.engine.report.data import Column, Scored, Table, head_name, words
from substyle.engine.report.gains import any_late, changed_clearly, gain, score_of, scores_of, side
from substyle.engine.report.section import Section
from substyle.engine.results.model import ResultsDocument

_CLASS = "class"  # the objective that others are compared with


def sections(results: ResultsDocument) -> Iterator[Section]:
    """The section; none without trained backbones."""
    note = "All objectives see the same variants of the training photographs for the same number of steps; "
    note += (
        "transformations that are held out are not among them. Intervals are 95%, from seeds, if there are several, "
    )
    note += f"and {results.drawn()}, not corrected for the number of comparisons."
    title = "Fine-tuning: does predicting transformations help?"
    table = finetuned(results)
    if table.rows:
        yield gains.section("finetuned", "Fine-tuning", title, table, finetuned_summary(results), note)


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
        for objective, (heading, task, key) in product(trained, scores_of(results)):
            names = list(trained[objective].values())
            after = [score[0] for name in names if (score := score_of(results, name, task, key)) is not None]
            if len(after) < len(names):
                continue
            alone = trained.get(_CLASS, {}) if objective != _CLASS else {}
            both = [(name, alone[seed]) for seed, name in trained[objective].items() if seed in alone]
            change = _difference(results, [(name, base) for name in names], task, key)
            against = _difference(results, both, task, key)
            mean = float(np.mean(np.array(after, np.float64)))
            before = score_of(results, base, task, key)
            late = "no" if any_late(results, task, base, *names, *(other for _, other in both)) else "yes"
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
        found = [(row[2][:1].lower() + row[2][1:], row[-2], side(row[-2])) for row in rows]
        what = "the transformation alone" if objective == "transformation" else "class and transformation"
        sentences.append(f"Compared with the class alone, training {base} on {what} {changed_clearly(found)}.")
    return " ".join(sentences)


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
        score = score_of(results, name, "shift", folder)
        if score is None or score[1] is None or score[2] is None:
            return None
        values.append(score[0])
        halves.append((score[2] - score[1]) / 2)
    change, half = values[0] - values[1], hypot(*halves)
    return change, change - half, change + half
