"""What the numbers say, in plain sentences that claim no more than their intervals allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from substyle.engine.report.cells import show, show_interval
from substyle.engine.report.results import Results, dig, head_name, heads, ordered, real


@dataclass(frozen=True)
class Finding:
    """One thing that was found: what it is about, and what to say of it."""

    title: str
    text: str


@dataclass(frozen=True)
class _Score:
    key: str
    name: str
    value: float
    low_high: Sequence[float] | None

    def text(self, chance: float | None) -> str:
        """Such as ``93.1% (95% interval 92.4–93.8; chance 3.2%)``."""
        remarks = [f"95% interval {show_interval(self.low_high)}"] if self.low_high else []
        remarks += [] if chance is None else [f"chance {show(chance)}%"]
        return f"{show(self.value)}%" + (f" ({'; '.join(remarks)})" if remarks else "")

    def short(self) -> str:
        """Such as ``93.1% (92.4–93.8)``."""
        return f"{show(self.value)}%" + (f" ({show_interval(self.low_high)})" if self.low_high else "")


def _scores(results: Results, task: str, head: str, key: str, names: Sequence[str]) -> list[_Score]:
    """Scores of the named backbones, best first."""
    found = []
    for name in names:
        scores = dig(results, "backbones", name, task, head)
        value = dig(scores, key)
        if value is not None:
            found.append(_Score(key, name, value, dig(scores, "ci95" if key == "accuracy" else f"{key}_ci95")))
    return sorted(found, key=lambda score: -score.value)


def difference(results: Results, task: str, head: str, a: _Score, b: _Score) -> tuple[float, Sequence[float] | None]:
    """a minus b and its paired 95 % interval, which is None where nobody compared the two."""
    value = a.value - b.value
    for row in results.get("comparisons") or []:
        if (
            (row["task"], row.get("head")) != (task, head)
            or row.get("metric") not in (None, a.key)
            or not row.get("ci95")
        ):
            continue
        low, high = row["ci95"]
        # without a metric a row counts only if it can be of this one
        if (row["a"], row["b"]) == (a.name, b.name) and (row.get("metric") or abs(row["difference"] - value) < 0.005):
            return row["difference"], (low, high)
        if (row["a"], row["b"]) == (b.name, a.name) and (row.get("metric") or abs(row["difference"] + value) < 0.005):
            return -row["difference"], (-high, -low)
    return value, None


def clearly_above(results: Results, task: str, head: str, a: _Score, b: _Score) -> bool:
    """Whether a beats b beyond doubt: by the paired interval if there is one, else by intervals that do not touch."""
    _, paired = difference(results, task, head, a, b)
    if paired is not None:
        return paired[0] > 0
    return a.low_high is not None and b.low_high is not None and a.low_high[0] > b.low_high[1]


def _standing(results: Results, task: str, head: str, scores: Sequence[_Score]) -> str:
    """How the best score stands to the others, as the end of a paragraph; empty when it is alone."""
    best, rest = scores[0], scores[1:]
    level = [score.name for score in rest if not clearly_above(results, task, head, best, score)]
    if level:
        return f" The intervals do not tell it apart from {_listed(level)}."
    if rest:
        value, paired = difference(results, task, head, best, rest[0])
        interval = f" ({show_interval(paired, 'points')})" if paired else ""
        return f" Next is {rest[0].name}, {show(value)} points behind{interval}."
    return ""


def _article(head: str) -> str:
    return "An" if head == "mlp" else "A"


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence; beyond four only the first three and how many more."""
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _versus_controls(results: Results, task: str, head: str, key: str, best: _Score) -> str:
    controls = _scores(results, task, head, key, [name for name in ordered(results) if name not in real(results)])
    if not controls:
        return ""
    text = f" The strongest control, {controls[0].name}, reaches {show(controls[0].value)}%"
    return text + ("." if clearly_above(results, task, head, best, controls[0]) else ", which is not clearly less.")


def findings(results: Results) -> list[Finding]:
    """The headline: at most seven findings over all backbones that are no controls."""
    tried = heads(results)
    made = [_style(results, tried[0]), _new_styles(results, tried[0]), _substance(results, tried[0])] if tried else []
    made += [_nearest(results), _together(results), _unfinished(results)]
    return [finding for finding in made if finding is not None]


def _style(results: Results, head: str) -> Finding | None:
    scores = _scores(results, "fine", head, "accuracy", real(results))
    if not scores:
        return None
    best, chance = scores[0], dig(results, "chance", "fine")
    count = len(results["transformations"])
    text = f"{_article(head)} {head_name(head)} probe on {best.name} names which of {count} transformations a test "
    text += f"photograph went through in {best.text(chance)} of cases." + _standing(results, "fine", head, scores)
    return Finding("Style", text + _versus_controls(results, "fine", head, "accuracy", best))


def _new_styles(results: Results, head: str) -> Finding | None:
    scores = _scores(results, "coarse", head, "held_out", real(results))
    if not scores:
        return None
    best, chance = scores[0], dig(results, "chance", "coarse")
    coarse = dig(results, "backbones", best.name, "coarse", head)
    text = f"For transformations that no probe was trained on, {best.name} still gives the right coarse class in "
    text += f"{best.text(chance)} of cases"
    seen, gap, gap_ci = (dig(coarse, key) for key in ("seen", "gap", "gap_ci95"))
    if seen is not None and gap is not None:
        text += f", against {show(seen)}% for seen ones: a gap of {show(gap)} points"
        text += f" ({show_interval(gap_ci, 'points')})" if gap_ci else ""
        text += ", which may be none" if gap_ci and gap_ci[0] <= 0 <= gap_ci[1] else ""
    text += "." + _standing(results, "coarse", head, scores)
    if chance is not None and best.low_high and best.low_high[0] <= chance:
        text += " That is not clearly above chance."
    held_out = [
        (row["accuracy"], name)
        for name, row in (dig(coarse, "by_transformation") or {}).items()
        if dig(row, "role") == "held_out" and dig(row, "accuracy") is not None
    ]
    if len(held_out) > 1:
        (low, hardest), (high, easiest) = min(held_out), max(held_out)
        text += f" Its easiest is {easiest} ({show(high)}%), its hardest {hardest} ({show(low)}%)."
    return Finding("New styles", text)


def _substance(results: Results, head: str) -> Finding | None:
    scores = _scores(results, "semantic", head, "clean", real(results))
    if not scores:
        return None
    best, chance = scores[0], dig(results, "chance", "semantic")
    text = f"The class of an unchanged photograph is read best from {best.name}, in {best.text(chance)} of cases."
    text += _standing(results, "semantic", head, scores)
    robust = _scores(results, "semantic", head, "obfuscated", real(results))
    if robust:
        text += f" On transformed photographs the same probes keep {show(robust[-1].value)}"
        text += f"–{show(robust[0].value)}%" if len(robust) > 1 else "%"
        text += f" (best: {robust[0].name})." if len(robust) > 1 else "."
        by = dig(results, "backbones", robust[0].name, "semantic", head, "by_transformation") or {}
        worst = min(((v, t) for t, v in by.items() if v is not None and t != "identity"), default=None)
        if worst:
            text += f" What hides the class most from {robust[0].name} is {worst[1]} ({show(worst[0])}%)."
    return Finding("Substance", text)


def _nearest(results: Results) -> Finding | None:
    parts = []
    for name in real(results):
        balance = dig(results, "backbones", name, "balance")
        if dig(balance, "same_image") is not None:
            parts.append((balance["same_image"], balance.get("same_transformation"), name))
    if not parts:
        return None
    if len(parts) > 3:
        low, high = min(parts), max(parts)
        text = "The nearest other variant shows the same photograph in "
        text += f"{show(low[0])}% ({low[2]}) to {show(high[0])}% ({high[2]}) of cases"
        styles = [part[1] for part in parts if part[1] is not None]
        text += f", and the same style in {show(min(styles))} to {show(max(styles))}%." if styles else "."
    else:
        each = [f"{show(image)}% of cases in {name} (the same style in {show(style)}%)" for image, style, name in parts]
        text = f"The nearest other variant shows the same photograph in {_listed(each)}."
    return Finding("Neighbours", text)


def _together(results: Results) -> Finding | None:
    clauses = []
    for task, word in (("fine", "style"), ("semantic", "class")):
        groups: dict[str, list[str]] = {"clearly worse": [], "clearly better": [], "level": []}
        for name in real(results):
            scores = dig(results, "backbones", name, "multitask", "difference", task)
            value, interval = dig(scores, "value"), dig(scores, "ci95")
            if value is not None and interval is not None:
                level = interval[0] <= 0 <= interval[1]
                group = "level" if level else "clearly better" if value > 0 else "clearly worse"
                groups[group].append(f"{name} ({show_interval(interval, 'points')} points)")
        clauses += [f"{word} is {how} on {_listed(names)}" for how, names in groups.items() if names and how != "level"]
        count = len(groups["level"])
        if count:
            others = " other" if count < sum(map(len, groups.values())) else ""
            clauses.append(f"{word} shows no clear difference on {count}{others} backbone{'s'[: count > 1]}")
    if not clauses:
        return None
    text = "One probe trained for style and class together, beside twins trained for one of them on the same rows: "
    return Finding("Both at once", text + "; ".join(clauses) + ".")


def unfinished(results: Results) -> list[tuple[str, str, str]]:
    """(backbone, task, head) of every probe that was still improving when its training stopped."""
    return [
        (name, task, head)
        for name in ordered(results)
        for task in ("fine", "coarse", "semantic")
        for head in heads(results)
        if dig(results, "backbones", name, task, head, "improving")
    ]


def _unfinished(results: Results) -> Finding | None:
    late: list[Any] = unfinished(results)
    if not late:
        return None
    subject = "1 probe was" if len(late) == 1 else f"{len(late)} probes were"
    return Finding("Unfinished", f"{subject} still improving when training stopped; more steps may raise those scores.")


def portrait(results: Results, name: str) -> list[str]:
    """What one backbone knows, in at most five sentences."""
    tried = heads(results)
    head = tried[0] if tried else "linear"
    backbone = results["backbones"][name]
    lines = []
    style = _scores(results, "fine", head, "accuracy", [name])
    if style:
        lines.append(f"Names the transformation in {style[0].short()} of cases.")
    coarse, held_out = dig(backbone, "coarse", head), _scores(results, "coarse", head, "held_out", [name])
    if held_out and dig(coarse, "seen") is not None:
        lines.append(
            f"Gives the coarse class of held-out transformations in {held_out[0].short()}, of seen ones in "
            f"{show(coarse['seen'])}%."
        )
    clean, hidden = (_scores(results, "semantic", head, key, [name]) for key in ("clean", "obfuscated"))
    if clean:
        tail = f", and {hidden[0].short()} once they are transformed" if hidden else ""
        lines.append(f"Class: {clean[0].short()} on unchanged photographs{tail}.")
    balance = dig(backbone, "balance")
    if dig(balance, "same_image") is not None:
        lines.append(
            f"Nearest other variant: same photograph {show(balance['same_image'])}%, same style "
            f"{show(balance.get('same_transformation'))}%."
        )
    return lines
