"""Probes of tokens: attentive and efficient heads beside those of the mean over tokens."""

from __future__ import annotations

from typing import Any

from substyle.engine.report.data import Column, Results, Table, dig, head_name, ordered, scored, show, show_interval
from substyle.engine.report.findings import LEVEL, SCORES, interval_key

HEADS = ("linear", "mlp", "attentive", "efficient")


def attentive(results: Results) -> Table:
    """Accuracy of all heads of backbones with tokens, and paired differences to the linear head."""
    columns = (
        *(Column(key, key.capitalize(), "text") for key in ("backbone", "tokens", "score")),
        *(Column(head, "MLP" if head == "mlp" else head.capitalize(), interval=True) for head in HEADS),
        *(Column(f"{head}_gain", f"{head.capitalize()} − linear", "points", interval=True) for head in HEADS[2:]),
        Column("converged", "Converged", "text"),
    )
    rows = []
    for name in ordered(results):
        backbone = results["backbones"][name]
        for heading, task, key in SCORES if backbone.get("tokens") else ():
            scores = {head: dig(backbone, task, head) for head in HEADS}
            values = [scored(s, key, interval_key(s, task, key)) for s in scores.values()]
            if any(values[2:]):
                late = [head_name(head) for head, s in scores.items() if dig(s, "converged") is False]
                gains = [_gain(results, name, head, task, key) for head in HEADS[2:]]
                shape = f"{backbone['tokens']} × {backbone.get('dim', '?')}"
                rows.append((name, shape, heading, *values, *gains, f"not {', '.join(late)}" if late else "yes"))
    caption = "Probes of tokens; linear and MLP probes read the mean over tokens."
    return Table("attentive", caption, columns, tuple(rows))


def _gain(results: Results, name: str, head: str, task: str, key: str) -> tuple[float, Any, Any] | None:
    """Difference to the linear head with its interval, over transformations too where these are held out."""
    row = _comparison(results, name, head, task, key)
    if not row:
        return None
    return row["difference"], *(row.get("two_way_ci95" if key == "held_out" else "ci95") or (None, None))


def _comparison(results: Results, name: str, head: str, task: str, key: str) -> dict[str, Any]:
    wanted = (task, key, f"{head}-linear", name, name)
    rows = results.get("comparisons") or []
    return next((r for r in rows if tuple(r.get(k) for k in ("task", "metric", "head", "a", "b")) == wanted), {})


def attentive_summary(results: Results) -> str:
    """One sentence on where attention reads clearly more or less than a linear probe of the mean.

    A difference is clear if its interval excludes 0 and its p value, after Holm's correction, is below 0.05.
    """
    clauses = []
    for head in HEADS[2:]:
        better, worse, count = [], [], 0
        for name in ordered(results):
            for heading, task, key in SCORES if results["backbones"][name].get("tokens") else ():
                late = [dig(results, "backbones", name, task, h, "converged") is False for h in (head, "linear")]
                gain = _gain(results, name, head, task, key)
                if gain is None or gain[1] is None or any(late):
                    continue
                count += 1
                points = f"{show(gain[0], 'points')} points, {show_interval(gain[1:], 'points')}"
                where = f"{heading.lower()} of {name} ({points})"
                p = _comparison(results, name, head, task, key).get("p_holm")
                if p is None or p >= LEVEL:
                    continue
                if gain[1] > 0:
                    better.append((-gain[0], where))
                elif gain[2] < 0:
                    worse.append((gain[0], where))
        if count:
            text = f"{head} probes are clearly better in {len(better)} of {count} scores"
            text += f", most for {min(better)[1]}" if better else ""
            text += f", and clearly worse in {len(worse)}" + (f", most for {min(worse)[1]}" if worse else "")
            clauses.append(text)
    if not clauses:
        return "No attentive probe and its linear probe have converged, so they are not compared."
    return f"Compared with linear probes of the mean over tokens, {'; '.join(clauses)}."
