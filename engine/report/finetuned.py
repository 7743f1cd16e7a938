"""Backbones fine-tuned with several objectives: does predicting transformations help?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import hypot
from typing import Any

import numpy as np

from substyle.engine.report.adapters import gain, head_of
from substyle.engine.report.data import Column, Results, Table, dig, head_name, ordered, show, show_interval
from substyle.engine.report.findings import SCORES

Estimate = tuple[float, float | None, float | None]
_CLASS = "semantic"  # the objective that others are compared with


def finetuned(results: Results) -> Table:
    """Scores of linear probes before and after fine-tuning: mean over seeds, and differences."""
    columns = (
        *(Column(key, key.capitalize(), "text") for key in ("backbone", "objective", "score")),
        Column("seeds", "Seeds", "count"),
        Column("before", "Before"),
        Column("after", "After"),
        Column("change", "Change", "points", interval=True),
        Column("difference", "Against class alone", "points", interval=True),
        Column("converged", "Converged", "text"),
    )
    rows: list[tuple[Any, ...]] = []
    for (base, title), trained in _trained(results).items():
        for objective, (heading, task, key) in product(trained, _scores(results)):
            names = list(trained[objective].values())
            after = [_value(results, name, task, key) for name in names]
            if None in after:
                continue
            alone = trained.get(_CLASS, {}) if objective != _CLASS else {}
            both = [(name, alone[seed]) for seed, name in trained[objective].items() if seed in alone]
            change = _difference(results, [(name, base) for name in names], task, key)
            difference = _difference(results, both, task, key)
            mean = float(np.mean(np.array(after, np.float64)))
            before = _value(results, base, task, key)
            compared = {base, *names, *(other for _, other in both)}
            late = any(_scored(results, name, task, "converged") is False for name in compared)
            row = (title, objective, heading, len(names), before, mean, change, difference)
            rows.append((*row, "no" if late else "yes"))
    caption = f"{head_name(head_of(results)).capitalize()} probes of backbones before and after fine-tuning, "
    caption += "mean over seeds."
    return Table("finetuned", caption, columns, tuple(rows))


def finetuned_summary(results: Results) -> str:
    """For each backbone and objective, the scores whose interval against training on the class alone excludes 0.

    Scores of probes that have not converged are left out.
    """
    table, sentences = finetuned(results), []
    for base, objective in dict.fromkeys((row[0], row[1]) for row in table.rows):
        rows = [row for row in table.rows if row[:2] == (base, objective) and row[-2] and row[-1] == "yes"]
        found = [(row[2][:1].lower() + row[2][1:], row[-2]) for row in rows]
        if not found:
            continue
        texts = []
        for word, sign in (("raises", 1), ("lowers", -1)):
            clear = [(score, each) for score, each in found if each[1] is not None and _side(each) == sign]
            listed = [f"{s} ({show(e[0], 'points')} points, {show_interval(e[1:], 'points')})" for s, e in clear]
            texts += [f"{word} {', '.join(listed)}"] if listed else []
        words = "the transformation alone" if objective == "transformation" else "class and transformation"
        clause = " and ".join(texts) or "changes no score clearly"
        sentences.append(f"Compared with the class alone, training {base} on {words} {clause}.")
    return " ".join(sentences)


def _side(estimate: Estimate) -> int:
    """Sign of an interval; 0 if it contains 0."""
    _, low, high = estimate
    return 0 if low is None or high is None or low <= 0 <= high else 1 if low > 0 else -1


def _trained(results: Results) -> dict[tuple[str, str], dict[str, dict[int, str]]]:
    """Names of fine-tuned backbones by backbone and its title, objective and seed, if the backbone is in the results.

    Trainings with other settings are not compared: each has the settings in its title.
    """
    found: dict[tuple[str, str], dict[str, dict[int, str]]] = {}
    for name in ordered(results):
        facts = dig(results, "backbones", name, "spec", "finetuned")
        if isinstance(facts, Mapping) and facts["backbone"] in results["backbones"]:
            settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.get("settings", {}).items())
            each = found.setdefault((facts["backbone"], settings), {})
            each.setdefault(facts["objective"], {})[facts["seed"]] = name
    times = Counter(base for base, _ in found)
    return {(base, f"{base} ({how})" if times[base] > 1 else base): each for (base, how), each in found.items()}


def _scores(results: Results) -> Iterator[tuple[str, str, str]]:
    yield from SCORES
    shifts = [dig(results, "backbones", name, "shift") or {} for name in ordered(results)]
    for folder in dict.fromkeys(folder for each in shifts for folder in each):
        yield f"Class, {folder}", "shift", folder


def _value(results: Results, name: str, task: str, key: str) -> float | None:
    if task == "shift":
        return dig(results, "backbones", name, "shift", key, "accuracy")  # type: ignore[no-any-return]
    return _scored(results, name, task, key)  # type: ignore[no-any-return]


def _scored(results: Results, name: str, task: str, key: str) -> Any:  # noqa: ANN401
    """An entry of the probe of a task; shifts are scored by the linear class probe."""
    task, head = ("semantic", "linear") if task == "shift" else (task, head_of(results))
    return dig(results, "backbones", name, task, head, key)


def _difference(results: Results, pairs: Sequence[tuple[str, str]], task: str, key: str) -> Estimate | None:
    """Mean difference over seeds, with a 95% interval from seeds (Student) and photographs, added in quadrature.

    The part of the photographs is the mean half-width of the pairs' intervals, which the mean over seeds cannot exceed.
    """
    values: list[float] = []
    halves: list[float] = []
    for a, b in pairs:
        if task == "shift":
            estimate = _unpaired(results, a, b, key)
        else:
            found = gain(results, a, b, task, key)
            estimate = found and found[0]
        if estimate is None or estimate[1] is None or estimate[2] is None:
            return None
        values.append(estimate[0])
        halves.append((estimate[2] - estimate[1]) / 2)
    if not values:
        return None
    mean, half = float(np.mean(values)), float(np.mean(halves))
    if len(values) > 1:
        from scipy.stats import t as student  # slow to import

        half = float(np.hypot(half, student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5))
    return mean, mean - half, mean + half


def _unpaired(results: Results, a: str, b: str, folder: str) -> Estimate | None:
    """Difference of accuracies after a shift, whose interval ignores that the photographs are the same."""
    values: list[float] = []
    halves: list[float] = []
    for name in (a, b):
        scores = dig(results, "backbones", name, "shift", folder)
        value, interval = dig(scores, "accuracy"), dig(scores, "ci95")
        if value is None or interval is None:
            return None
        values.append(value)
        halves.append((interval[1] - interval[0]) / 2)
    difference, half = values[0] - values[1], hypot(*halves)
    return difference, difference - half, difference + half
