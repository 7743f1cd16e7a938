"""Backbones beside their adapted embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from substyle.engine.report.data import Column, Results, Table, dig, heads, ordered, scored, show, show_interval
from substyle.engine.report.findings import LEVEL, SCORES, interval_key


def adapters(results: Results) -> Table:
    """Scores of the first head before and after adaptation, and their paired differences."""
    columns = (
        *(Column(key, key.capitalize(), "text") for key in ("backbone", "method", "score")),
        Column("before", "Backbone", interval=True),
        Column("after", "Adapted", interval=True),
        Column("difference", "Difference", "points", interval=True),
        Column("converged", "Converged", "text"),
    )
    rows: list[tuple[Any, ...]] = []
    for name, base, method in _pairs(results):
        both = [results["backbones"][each] for each in (base, name)]
        for heading, task, key in SCORES:
            scores = [dig(each, task, head_of(results)) for each in both]
            before, after = (scored(each, key, interval_key(each, task, key)) for each in scores)
            if before is not None and after is not None:
                late = any(dig(each, "converged") is False for each in scores)
                found = gain(results, name, base, task, key)
                rows.append((base, method, heading, before, after, found and found[0], "no" if late else "yes"))
        late = any(dig(each, "semantic", "linear", "converged") is False for each in both)  # the probe of shifts
        for folder in dig(both[0], "shift") or {}:
            before, after = (scored(dig(each, "shift", folder), "accuracy", "ci95") for each in both)
            if before is not None and after is not None:
                rows.append((base, method, f"Class, {folder}", before, after, None, "no" if late else "yes"))
    caption = f"{head_of(results)} probes of backbones and of their adapted embeddings."
    return Table("adapters", caption, columns, tuple(rows))


def adapters_summary(results: Results) -> str:
    """One sentence for each adapter: which scores it clearly raises and lowers, after Holm's correction."""
    sentences = []
    for name, base, method in _pairs(results):
        raised: list[str] = []
        lowered: list[str] = []
        for heading, task, key in SCORES:
            found = gain(results, name, base, task, key)
            late = [dig(results, "backbones", n, task, head_of(results), "converged") is False for n in (name, base)]
            if found is None or found[1] is None or found[1] >= LEVEL or any(late):
                continue
            (value, low, high), _ = found
            interval = show_interval(None if low is None or high is None else (low, high), "points")
            points = f"{heading.lower()} ({show(value, 'points')} points, {interval})"
            (raised if value > 0 else lowered).append(points)
        clear = [f"{word} {', '.join(some)}" for word, some in (("raises", raised), ("lowers", lowered)) if some]
        sentences.append(f"{method} on {base} {' and '.join(clear) or 'changes no score clearly'}.")
    return " ".join(sentences)


def _pairs(results: Results) -> list[tuple[str, str, str]]:
    """(adapted backbone, its backbone, method) where both are in the results."""
    found = []
    for name in ordered(results):
        adapter = dig(results, "backbones", name, "adapter")
        if isinstance(adapter, Mapping) and adapter.get("backbone") in results["backbones"]:
            found.append((name, str(adapter["backbone"]), str(adapter.get("method"))))
    return found


def head_of(results: Results) -> str:
    """The first head of all probes."""
    return (*heads(results), "")[0]


def gain(
    results: Results, name: str, base: str, task: str, key: str
) -> tuple[tuple[float, float | None, float | None], float | None] | None:
    """Score of a backbone minus that of another: (value, low, high), and the p value after Holm's correction."""
    for row in results.get("comparisons") or []:
        if (row.get("task"), row.get("metric"), row.get("head")) != (task, key, head_of(results)):
            continue
        if {row.get("a"), row.get("b")} == {name, base}:
            low, high = row.get("two_way_ci95" if key == "held_out" else "ci95") or (None, None)
            if row["a"] == name:
                return (row["difference"], low, high), row.get("p_holm")
            low, high = (None if end is None else -end for end in (high, low))
            return (-row["difference"], low, high), row.get("p_holm")
    return None
