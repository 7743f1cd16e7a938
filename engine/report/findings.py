"""Findings of a report: sentences and ranks supported by tests and intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from substyle.engine.report.data import head_name, plural, show, show_interval
from substyle.engine.results.model import Accuracy, Estimate, PairComparison, ProbeScores, ResultsDocument
from substyle.engine.results.statistics import MARGIN
from substyle.pipelines.transforms.names import count_families

LEVEL = 0.05  # significance level after Holm's correction
_WIDEST = 0.5
_COMPARED = {"kind_rotation": "rotation"}  # tasks with another name in comparisons


# heading, task and key of the scores that tables set side by side
SCORES = (
    ("Transformation", "transformation", "accuracy"),
    ("Kind, seen", "kind", "seen"),
    ("Kind, held out", "kind", "held_out"),
    ("Class", "class", "original"),
    ("Class, transformed", "class", "transformed"),
)


Compared = dict[tuple[str, str], PairComparison]  # by (a, b)


def difference(rows: Compared, a: str, b: str) -> Estimate | None:
    """a minus b; None if they were not compared."""
    if (row := rows.get((a, b))) is not None:
        return row.difference
    return -row.difference if (row := rows.get((b, a))) is not None else None


def conclusive(low_high: Sequence[float] | None) -> bool:
    """Whether there is an interval, of at most half of the scale of accuracies; others are no headline."""
    return low_high is not None and low_high[1] - low_high[0] <= _WIDEST


@dataclass(frozen=True)
class Score:
    """Score of a backbone, its interval, and what it is over, such as ``24 photographs and 1 transformation``."""

    name: str
    control: bool
    value: float
    low_high: Sequence[float] | None
    tested: str = ""

    @property
    def conclusive(self) -> bool:
        """Whether its interval is narrow enough for a headline."""
        return conclusive(self.low_high)

    @property
    def number(self) -> str:
        """The value in per cent, or that it is inconclusive."""
        return f"{show(self.value)}%" if self.conclusive else "inconclusive"

    def remarks(self, chance: float | None) -> str:
        """Format as ``95% interval 92.4–93.8; 320 photographs; chance 3.2%``."""
        interval = f"95% interval {show_interval(self.low_high)}" if self.low_high else ""
        of_chance = "" if chance is None else f"chance {show(chance)}%"
        order = (interval, self.tested) if self.conclusive else (f"from {self.tested}" if self.tested else "", interval)
        return "; ".join(filter(None, (*order, of_chance)))

    def text(self, chance: float | None = None) -> str:
        """Format as ``93.1% (95% interval 92.4–93.8; 320 photographs; chance 3.2%)``."""
        remarks = self.remarks(chance)
        return f"{self.number} ({remarks})" if self.conclusive else f"{self.number} {remarks}".rstrip()

    def short(self) -> str:
        """Format as ``93.1% (92.4–93.8)``."""
        return self.number + (f" ({show_interval(self.low_high)})" if self.low_high else "")


@dataclass(frozen=True)
class Standing:
    """Scores and comparisons of one task, head and metric.

    Attributes:
        scores: scores of backbones and controls, best first.
        unconverged: backbones whose probe has not converged, excluded from the scores.
        rows: comparisons by (a, b), which are paired.
    """

    scores: tuple[Score, ...]
    unconverged: tuple[str, ...]
    rows: Compared

    @property
    def trained(self) -> list[Score]:
        """Scores of backbones that are not controls, best first."""
        return [score for score in self.scores if not score.control]

    @property
    def controls(self) -> list[Score]:
        """Scores of controls, best first."""
        return [score for score in self.scores if score.control]

    def clearly_above(self, a: str, b: str) -> bool:
        """Whether a is significantly above b after correction; False if they were not compared."""
        found, p = difference(self.rows, a, b), self.p(a, b)
        return found is not None and found.value > 0 and p is not None and p < LEVEL

    def p(self, a: str, b: str) -> float | None:
        """p value of their difference after Holm's correction; None if they were not tested."""
        row = self.rows.get((a, b)) or self.rows.get((b, a))
        return None if row is None else row.p_holm

    def unclear(self, names: Iterable[str]) -> str:
        """Sentences on those that are neither clearly above nor below the best backbone; empty without any."""
        best, unclear, inconclusive, missing = self.trained[0], list[str](), list[str](), list[str]()
        for name in names:
            if self.clearly_above(best.name, name) or self.clearly_above(name, best.name):
                continue
            if (found := difference(self.rows, best.name, name)) is None:
                missing.append(name)
                continue
            value, ends = found.value, found.interval
            p, text = self.p(best.name, name), name
            if ends:
                remark = f"; p = {p:.2f}" if p is not None else ""
                text += f" ({show(value, 'points')} points, {show_interval(ends, 'points')}{remark})"
            (unclear if conclusive(ends) else inconclusive).append(text)
        tested = f" from {best.tested}" if best.tested else ""
        text = f" No clear difference between {best.name} and {listed(unclear)}." if unclear else ""
        if inconclusive:
            text += f" The difference between {best.name} and {listed(inconclusive)} is inconclusive{tested}."
        return text + (f" Not compared with {best.name}: {listed(missing)}." if missing else "")

    def equivalent(self, a: str, b: str) -> bool:
        """Whether the 90 % interval of the difference is within the margin.

        Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", Journal of
        Pharmacokinetics and Biopharmaceutics 15, 1987.
        """
        found = difference(self.rows, a, b)
        return found is not None and found.ci90 is not None and within_margin(found.ci90)

    def rank(self, name: str) -> tuple[int, int]:
        """Best and worst possible rank: 1 + number clearly above, n − number clearly below."""
        others = [score.name for score in self.scores if score.name != name]
        above = sum(self.clearly_above(other, name) for other in others)
        return 1 + above, len(self.scores) - sum(self.clearly_above(name, other) for other in others)


def within_margin(low_high: Sequence[float]) -> bool:
    """Whether an interval is within ± `MARGIN`."""
    return low_high[0] > -MARGIN and low_high[1] < MARGIN


def standing(results: ResultsDocument, task: str, head: str, key: str, names: Iterable[str] | None = None) -> Standing:
    """Standing by a score of the probes of a task, of all or the given backbones."""
    found, unconverged = [], []
    for name in results.ordered() if names is None else names:
        probe = results.probe(name, task, head)
        if probe is None or (value := getattr(probe, key)) is None:
            continue
        if probe.unconverged:
            unconverged.append(name)
        else:
            control = bool(results.backbones[name].control)
            found.append(Score(name, control, value.value, value.interval, _tested(results, task, probe, key)))
    rows = results.compared(_COMPARED.get(task, task), key, head)
    return Standing(tuple(sorted(found, key=lambda score: -score.value)), tuple(unconverged), rows)


def _tested(results: ResultsDocument, task: str, probe: ProbeScores, key: str) -> str:
    """Number of photographs and of transformations that a score of a probe is over; severities of one count as one."""
    scores = {t: row.accuracy if isinstance(row, Accuracy) else row for t, row in _by_transformation(probe).items()}
    names = [
        row.name
        for row in results.transformations
        if scores.get(row.name) is not None
        and (row.role == {"held_out": "held_out", "seen": "train"}.get(key, row.role))
        and (key != "styles" or row.kind == "style")
        and (key != "transformed" or row.kind != "identity")
    ]
    photographs, held_out = (
        (results.splits or {}).get("test"),
        "held-out " * (task == "kind_rotation" or key == "held_out"),
    )
    if key in ("original", "transformed") and results.labelled_test is not None:
        photographs = results.labelled_test
    parts = [] if photographs is None else [plural(photographs, "photograph")]
    if key != "original" and names:
        parts.append(plural(count_families(names), f"{held_out}transformation"))
    if key == "styles" and names:
        parts[-1] += f" of {plural(len(getattr(probe, 'generators', None) or ' '), 'generator')}"
    return " and ".join(parts)


def _by_transformation(probe: ProbeScores) -> Mapping[str, Accuracy | float | None]:
    return getattr(probe, "by_transformation", None) or {}


def unseen(results: ResultsDocument, head: str) -> tuple[str, str]:
    """Task and score of unseen transformations: each held out in turn, or those of the fixed split.

    Each in turn unless a backbone or a control has only the fixed split, so that all are compared on the same.
    Backbones that were trained on all transformations, which cannot be held out in turn, do not count.
    """
    for name, backbone in results.backbones.items():
        fixed, turned = (results.probe(name, task, head) for task in ("kind", "kind_rotation"))
        if fixed and fixed.held_out is not None and not backbone.base and not (turned and turned.accuracy is not None):
            return "kind", "held_out"
    return "kind_rotation", "accuracy"


_MOST_RANKS = 8  # maximum backbones listed with ranks in one sentence


@dataclass(frozen=True)
class Finding:
    """A finding: title and text."""

    title: str
    text: str


def listed(names: Sequence[str], most: int = 4) -> str:
    """Join names for a sentence; more than ``most`` are abbreviated to "… and N more"."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def controls_first(found: Standing) -> str:
    """Sentences on controls that lead or are not clearly below the best backbone."""
    best, text = found.trained[0], ""
    if found.controls and (first := found.controls[0]).value > best.value and first.conclusive:
        text = f"A control leads: {first.name} has {first.short()}"
        text += f", clearly above {best.name}." if found.clearly_above(first.name, best.name) else "."
    return (text + found.unclear(control.name for control in found.controls)).strip()


def strongest_control(found: Standing) -> str:
    """Sentence on the best control, if it is clearly below the best backbone."""
    control = next(iter(found.controls), None)
    if control is None or not control.conclusive or not found.clearly_above(found.trained[0].name, control.name):
        return ""
    return f" Clearly below: the strongest control, {control.name}, reaches {control.short()}."


def _standing_of_best(found: Standing) -> str:
    """Sentences on the best backbone compared with the others, ranks, and exclusions."""
    best, rest, text = found.trained[0], found.trained[1:], ""
    unclear = [score.name for score in rest if not found.clearly_above(best.name, score.name)]
    equal = [name for name in unclear if found.equivalent(best.name, name)]
    if unclear:
        text += found.unclear(unclear)
        text += f" Equivalent within 1 point: {listed(equal)}." if equal else ""
    elif rest:
        behind = difference(found.rows, best.name, rest[0].name) or Estimate(value=0)
        text += f" Next is {rest[0].name}, {show(behind)} points behind"
        text += f" ({show_interval(behind.interval, 'points')})." if behind.interval else "."
    text += strongest_control(found)
    if len(found.scores) > 2:
        ranks = {score.name: "–".join(map(str, sorted(set(found.rank(score.name))))) for score in found.scores}
        text += f" Ranks: {listed([f'{name} {rank}' for name, rank in ranks.items()], _MOST_RANKS)}."
    return text + (f" Excluded, not converged: {listed(found.unconverged)}." if found.unconverged else "")


def findings(results: ResultsDocument) -> list[Finding]:
    """Headline findings over all backbones and controls, at most seven."""
    rankings: tuple[tuple[str, str, str, Callable[[ResultsDocument, str, Standing], str]], ...] = (
        ("Transformation", "transformation", "accuracy", _transformation),
        ("In turn", "kind_rotation", "accuracy", _in_turn),
        ("Held out", "kind", "held_out", _held_out),
        ("Class", "class", "original", _class),
    )
    made: list[Finding | None] = []
    for title, task, key, make in rankings if (head := results.first_head()) else ():
        if title == "In turn" and unseen(results, head) != (task, key):
            continue
        found = standing(results, task, head, key)
        late = [name for name in found.unconverged if name in results.real()]
        if found.trained:
            made.append(Finding(title, f"{controls_first(found)} {make(results, head, found)}".strip()))
        elif late:
            made.append(Finding(title, f"No ranking: the probes on {listed(late)} have not converged."))
    made += [_nearest(results), _together(results), _not_converged(results)]
    return [finding for finding in made if finding is not None]


def _transformation(results: ResultsDocument, head: str, found: Standing) -> str:
    best, chance = found.trained[0], results.chance_of("transformation")
    text = f"{'An' if head == 'mlp' else 'A'} {head_name(head)} probe on {best.name} predicts which of "
    text += f"{results.suite_size} transformations was applied to a test photograph. Accuracy: {best.text(chance)}."
    return text + _standing_of_best(found)


def _held_out(results: ResultsDocument, head: str, found: Standing) -> str:
    best, chance = found.trained[0], results.chance_of("kind")
    backbone = results.backbones[best.name]
    text = f"On the held-out transformations of the suite, {best.name} predicts the kind. Accuracy: "
    text += f"{best.text(chance)}."
    kind = (backbone.kind or {})[head]
    if best.conclusive and kind and kind.seen is not None and kind.gap is not None:
        seen, gap, gap_ci = kind.seen, kind.gap, kind.gap.interval
        text += f" On seen ones it is {show(seen)}%: a gap of {show(gap)} points"
        text += f" ({show_interval(gap_ci, 'points')})" if gap_ci else ""
        text += ", not clearly different from 0." if gap_ci and gap_ci[0] <= 0 <= gap_ci[1] else "."
    text += _standing_of_best(found)
    if chance is not None and best.low_high and best.low_high[0] <= chance:
        text += " This is not clearly above chance."
    redrawn = (backbone.kind_redrawn or {}).get(head)
    if redrawn and redrawn.mean is not None:
        text += f" Over {redrawn.sets} random held-out sets, {best.name} reaches {show(redrawn.mean)} ± "
        text += f"{show(redrawn.sd)}% ({show(redrawn.low)}–{show(redrawn.high)})."
    if low := floors(results, head):
        text += f" At or below chance for every backbone, which points to the grouping: {listed(low)}."
    return text


def floors(results: ResultsDocument, head: str) -> list[str]:
    """Held-out transformations at or below chance for every probe.

    Their score reflects the grouping of the suite rather than the embeddings.
    """
    chance, reached = results.chance_of("kind"), dict[str, list[float]]()
    for backbone in results.ordered().values():
        turned, probe = ((task or {}).get(head) for task in (backbone.kind_rotation, backbone.kind))
        in_turn, seen = ((each and each.by_transformation) or {} for each in (turned, probe))
        held_out = {t: row for t, row in seen.items() if row and row.role == "held_out"}
        for t, row in (*in_turn.items(), *held_out.items()):
            if row and row.accuracy is not None:
                reached.setdefault(t, []).append(row.accuracy.value)
    return [t for t, values in reached.items() if chance is not None and max(values) <= chance]


def _in_turn(results: ResultsDocument, head: str, found: Standing) -> str:
    best, chance = found.trained[0], results.chance_of("kind")
    text = f"With each transformation held out in turn, {best.name} predicts its kind. Accuracy: "
    text += f"{best.text(chance)}." + _standing_of_best(found)
    styles = standing(results, "kind_rotation", head, "styles")
    if styles.trained:
        first, each = styles.trained[0], [f"{score.name} {score.short()}" for score in styles.scores]
        if any(score.conclusive for score in styles.scores):
            text += f" Painting styles only ({first.tested}): {listed(each, _MOST_RANKS)}."
        else:
            text += f" Painting styles only: inconclusive from {first.tested}."
    turned = ((name, (results.backbones[name].kind_rotation or {})[head]) for name in (s.name for s in styles.scores))
    return text + across_generators(
        (generator, name, scores.accuracy)
        for name, probe in turned
        for generator, scores in ((probe and probe.generators) or {}).items()
        if scores
    )


def across_generators(scores: Iterable[tuple[str, str, Estimate | None]]) -> str:
    """Accuracy on the styles of each generator by probes trained on those of the others; empty with one generator.

    Args:
        scores: generator, backbone and accuracy.
    """
    each: dict[str, list[str]] = {}
    for generator, name, accuracy in scores:
        if accuracy is not None:
            score = Score(name, False, accuracy.value, accuracy.interval)
            each.setdefault(generator, []).append(f"{name} {score.short()}")
    return "".join(
        f" Painting styles of the generator {generator}, by probes that have seen only those of another:"
        f" {listed(rows, _MOST_RANKS)}."
        for generator, rows in each.items()
    )


def _class(results: ResultsDocument, head: str, found: Standing) -> str:
    best, chance = found.trained[0], results.chance_of("class")
    text = f"{best.name} predicts the class of original photographs. Accuracy: {best.text(chance)}."
    text += _standing_of_best(found)
    robust = standing(results, "class", head, "transformed").trained
    if robust:
        text += f" On transformed photographs, {robust[0].name}: {robust[0].text()}."
    return text


def _nearest(results: ResultsDocument) -> Finding | None:
    parts, photographs = [], None
    for name, backbone in results.real().items():
        if (balance := backbone.balance) and balance.same_image is not None:
            style = balance.same_transformation
            parts.append((balance.same_image.value, None if style is None else style.value, name))
            photographs = (backbone.sampled or {}).get("query_images")
    if not parts:
        return None
    if len(parts) > 3:
        low, high = min(parts), max(parts)
        text = "The nearest other variant shows the same photograph in "
        text += f"{show(low[0])}% ({low[2]}) to {show(high[0])}% ({high[2]}) of cases"
        styles = [part[1] for part in parts if part[1] is not None]
        text += f", and the same transformation in {show(min(styles))} to {show(max(styles))}%." if styles else "."
    else:
        each = [
            f"{show(image)}% of cases in {name} (the same transformation in {show(style)}%)"
            for image, style, name in parts
        ]
        text = f"The nearest other variant shows the same photograph in {listed(each)}."
    text += f" Over {plural(photographs, 'photograph')}." if photographs else ""
    return Finding("Neighbours", text)


def _together(results: ResultsDocument) -> Finding | None:
    clauses = []
    for word in ("transformation", "class"):
        groups: dict[str, list[str]] = {"clearly worse": [], "clearly better": [], "equivalent": [], "unclear": []}
        for name, backbone in results.real().items():
            both = backbone.multitask
            change = ((both and both.difference) or {}).get(word)
            if not both or not change or change.interval is None or both.unconverged:
                continue
            value, interval, narrow = change.value, change.interval, change.ci90
            if narrow is not None and within_margin(narrow):
                groups["equivalent"].append(name)
            elif interval[0] <= 0 <= interval[1]:
                groups["unclear"].append(name)
            else:
                group = "clearly better" if value > 0 else "clearly worse"
                groups[group].append(f"{name} ({show_interval(interval, 'points')} points)")
        clauses += [f"{word} is {how} on {listed(groups[how])}" for how in list(groups)[:2] if groups[how]]
        for how, phrase in (("equivalent", "is equivalent within 1 point"), ("unclear", "shows no clear difference")):
            count = len(groups[how])
            if count:
                others = " other" if count < sum(map(len, groups.values())) else ""
                clauses.append(f"{word} {phrase} on {count}{others} backbone{'s'[: count > 1]}")
    left = [name for name, backbone in results.real().items() if backbone.unconverged("multitask", "mlp")]
    if not clauses and not left:
        return None
    text = (
        "A probe trained on transformation and class together, compared with single-task twins trained on the same rows"
    )
    tested = (results.splits or {}).get("test")
    text += f", on {plural(tested, 'photograph')}" if tested else ""
    text += f": {'; '.join(clauses)}." if clauses else "."
    return Finding("Multi-task", text + (f" Excluded, not converged: {listed(left)}." if left else ""))


def unconverged(results: ResultsDocument) -> list[tuple[str, str, str]]:
    """(backbone, task, head) of all probes that have not converged."""
    found = [
        (name, task, head)
        for name, backbone in results.ordered().items()
        for task in ("transformation", "kind", "kind_rotation", "class")
        for head in results.heads()
        if backbone.unconverged(task, head)
    ]
    both = [name for name, backbone in results.ordered().items() if backbone.unconverged("multitask", "mlp")]
    return found + [(name, "multitask", "mlp") for name in both]


def _not_converged(results: ResultsDocument) -> Finding | None:
    late = unconverged(results)
    if not late:
        return None
    each = listed([f"{name} ({task}, {head_name(head)})" for name, task, head in late])
    subject = "1 probe has" if len(late) == 1 else f"{len(late)} probes have"
    return Finding("Not converged", f"{subject} not converged, excluded from rankings: {each}.")


def portrait(results: ResultsDocument, name: str) -> list[str]:
    """Summary of one backbone in at most five sentences; probes that have not converged are left out."""
    head, backbone = results.first_head() or "linear", results.backbones[name]

    def of(task: str, key: str) -> tuple[Score, ...]:
        return standing(results, task, head, key, [name]).scores

    lines = []
    if style := of("transformation", "accuracy"):
        lines.append(f"Transformation: {style[0].text()}.")
    kind, held_out = backbone.probe("kind", head), of("kind", "held_out")
    if held_out and kind and kind.seen is not None:
        lines.append(f"Kind: {held_out[0].text()}; {show(kind.seen)}% on seen transformations.")
    original, hidden = (of("class", key) for key in ("original", "transformed"))
    if original:
        tail = f"; transformed: {hidden[0].text()}" if hidden else ""
        lines.append(f"Class: {original[0].text()}{tail}.")
    if (balance := backbone.balance) and balance.same_image is not None:
        lines.append(
            f"Nearest other variant: same photograph {show(balance.same_image)}%, same transformation "
            f"{show(balance.same_transformation)}%."
        )
    return lines
