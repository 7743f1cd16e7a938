"""Verdicts on six claims of "Substance or Style: What Does Your Image Embedding Know?" (arXiv 2307.05610).

Verdicts are functions of the results. They compare the training objectives stated by backbones, and apply only to the
backbones, photographs and transformations of the study. Layers of a network are not compared, only its own output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from scipy.special import stdtrit

from substyle.engine.report.data import show, show_interval
from substyle.engine.report.deciding import (
    Judged,
    backbones_needed,
    disagreeing,
    equivalence_needs,
    half_width,
    least_clear,
    more_generators,
    to_decide,
)
from substyle.engine.report.findings import LEVEL, across_generators, difference, listed, within_margin
from substyle.engine.results.model import (
    BackboneResults,
    Estimate,
    Finite,
    GroupedScores,
    Interval,
    Model,
    Resampling,
    ResultsDocument,
    Robustness,
    Texts,
)
from substyle.engine.results.statistics import FEWEST_CORRELATED, FEWEST_DECIDED, MARGIN, correlation_interval
from substyle.engine.stages.shift.section import shown_correlations
from substyle.pipelines.transforms.names import count_families, family

FEWEST_PHOTOGRAPHS = 100  # minimum test photographs for a verdict
FEWEST_TRANSFORMATIONS = 3  # of a verdict on sensitivities
STRONG = 0.5  # rank correlation that counts as "implies"
STATISTICS = "control:statistics"
SUPPORTED: Final = "supported"
CONTRADICTED: Final = "contradicted"
UNDECIDED: Final = "undecided"
NOT_TESTABLE: Final = "not testable"
_KIND = {"image_text": "image-text"}
_RESAMPLES = 2000
Difference = tuple[float, Sequence[float] | None]  # value, interval

Status = Literal["supported", "contradicted", "undecided", "not testable"]


class Claim(Model):
    """A verdict on a claim of the paper.

    Attributes:
        groups: backbones by kind.
        unit: unit of the estimate: points of accuracy, or a number.
        estimate: mean of the pairs' differences in accuracy, in [-1, 1]; for C5 in sensitivity; for C6 a rank
            correlation. Its interval is from the lowest lower to the highest upper end of the pairs' 95 % intervals.
        margin: margin of equivalence.
        n_transformations: number of transformations that were resampled (severities of one count as one), or of styles
            of unseen generators.
    """

    id: str
    statement: str
    status: Status
    groups: dict[str, Texts | None] | None = None
    unit: str | None = None
    estimate: Estimate | None = None
    margin: Finite | None = None
    n_transformations: int | None = None
    reasons: Texts | None = None


def claims(results: ResultsDocument) -> list[Claim]:
    """Create ``claims`` of results.json: C1 to C6 with verdicts."""
    return [
        _pairs_decide(results, "C1", "Masked models predict the transformation best.", "masked", _STYLE, +1),
        *_image_text_leads(results),
        _pairs_decide(results, "C3", _C3, "supervised", _STYLE, -1),
        *(make(results) for make in (_mlp_is_free, _contrastive_move, _moving_is_no_weakness)),
    ]


_C2 = "Image-text models generalise better to new styles than {} ones."
_C3 = "Foundation models retain more of the transformation than supervised ones."
_STYLE, _HELD_OUT_STYLES, _UNSEEN_STYLES = (
    ("transformation", "accuracy"),
    ("rotation", "styles"),
    ("generators", "accuracy"),
)


def _image_text_leads(results: ResultsDocument) -> Iterator[Claim]:
    """C2: image-text minus masked networks, and the same contrast with each other kind that the study has."""
    yield _new_styles(results, "C2", "masked")
    kinds = _by_objective(results)
    for kind in sorted(kinds.keys() - {"", "none", "image_text", "masked"}) if "image_text" in kinds else ():
        yield _new_styles(results, f"C2 {kind}", kind)


def _new_styles(results: ResultsDocument, identity: str, other: str) -> Claim:
    """Image-text minus others on the styles of unseen generators, every pair above 0.

    Without enough generators, on painting styles held out in turn.
    """
    kinds = _by_objective(results)
    unseen = _pairs(results, *_UNSEEN_STYLES, kinds.get("image_text", []), kinds.get(other, []))
    score = _UNSEEN_STYLES if unseen else _HELD_OUT_STYLES
    claim = _pairs_decide(results, identity, _C2.format(other), "image_text", score, +1, other)
    left, right = (names or [] for names in (claim.groups or {}).values())
    if score is _HELD_OUT_STYLES and not results.entries("generators"):
        crossed = across_generators(_by_generator(results, [*left, *right])).strip()
        styles = any(row.kind == "style" for row in results.transformations)
        one = "all styles come from one generator, whose fingerprint a probe may learn"
        _add(claim, crossed.rstrip(".") or (one if styles else "no painting styles among the transformations"))
    if every := _differences(results, "rotation", "balanced", left, right):
        _add(claim, f"over kinds of transformations held out in turn: {_shown(every)}")
    elif every := _differences(results, "rotation", "accuracy", left, right):
        _add(claim, f"over all transformations held out in turn: {_shown(every)}")
    return claim


def _by_generator(results: ResultsDocument, names: Sequence[str]) -> Iterator[tuple[str, str, Estimate | None]]:
    """Generator, backbone, and accuracy on the styles of each generator."""
    for name in names:
        turned = _turned(results, name)
        for generator, scores in ((turned and turned.generators) or {}).items():
            if scores is not None:
                yield generator, name, scores.accuracy


def _turned(results: ResultsDocument, name: str) -> GroupedScores | None:
    """Scores of the linear probes for which each transformation was held out in turn."""
    return (results.backbones[name].kind_rotation or {}).get("linear")


def _mlp_is_free(results: ResultsDocument) -> Claim:
    """C4: MLP minus linear above 0 for all backbones, and the shared probe equivalent to its twins in both tasks."""
    claim = _claim(
        "C4", "An MLP extracts more than a linear probe, and sharing it with the class task costs no accuracy."
    )
    names = results.networks()
    claim.groups, claim.margin = {"trained": names}, MARGIN
    claim.n_transformations = results.suite_size
    rows = results.compared("transformation", "accuracy", "mlp-linear")
    found = [(own.value, own.over_transformations) for name in names if (own := difference(rows, name, name))]
    costs = [(name, task, _free(results.backbones[name], task)) for name in names for task in _TASKS]
    absent = [] if names else [f"no trained network{_layers_only(results)}"]
    absent += ["MLP or linear transformation probes are missing for some backbones"] * (len(found) < len(names))
    absent += ["multi-task probes are missing for some backbones"] * any(ends is None for _, _, ends in costs)
    if found:
        _estimate(claim, found)
        _add(claim, f"MLP minus linear: {_shown(found)}, on {len(found)} backbone{'s' * (len(found) != 1)}")
    if absent:
        return _first(claim, NOT_TESTABLE, absent)
    known = [(name, task, ends) for name, task, ends in costs if ends is not None]
    apart = [f"{name} ({task})" for name, task, ends in known if not within_margin(ends)]
    _add(
        claim,
        f"the shared probe is not shown to be equivalent within 1 point on {listed(apart)}"
        if apart
        else "the shared probe is equivalent to its twins within 1 point in both tasks for all backbones",
    )
    dearer = all(min(ends[1] for each, _, ends in known if each == name) < -MARGIN for name in names)
    gain = _side(found, +1)
    if gain == SUPPORTED and not apart:
        claim.status = SUPPORTED
    elif gain == CONTRADICTED or dearer:
        claim.status = CONTRADICTED
    else:
        _add(claim, *_free_needs(results, claim, names))
    used = [("transformation", "linear"), ("transformation", "mlp"), ("multitask", "")]
    return _held_back(results, claim, names, used)


def _free_needs(results: ResultsDocument, claim: Claim, names: Sequence[str]) -> Iterator[str]:
    """What would decide C4: whether MLPs gain, else whether sharing is free where that is least clear."""
    rows = results.compared("transformation", "accuracy", "mlp-linear")
    gains = {name: rows[name, name] for name in names}
    judged = {f"the gain on {name}": _judged(row.difference) for name, row in gains.items()}
    if least_clear(judged) is not None:
        yield from _to_decide(results, claim, judged)
        return
    (count, photographs), worst = _drawn(results), (0.0, "")
    costs = {(name, task): _cost(results.backbones[name], task) for name in names for task in _TASKS}
    for (name, task), cost in costs.items() if count else ():
        if cost is not None and cost.ci90 is not None and not within_margin(cost.ci90):
            half = (cost.ci90[1] - cost.ci90[0]) / 2
            needed = equivalence_needs(cost.value, half, MARGIN, count, photographs)
            ratio = half / max(MARGIN - abs(cost.value), 1e-12)
            worst = max(worst, (ratio, f"to decide equivalence on {name} ({task}): {needed}"))
    if worst[1]:
        yield worst[1]


def _judged(gain: Estimate) -> Judged:
    """A difference with its interval over transformations."""
    return gain.value, gain.over_transformations, half_width(gain.value, gain.over_photographs)


def _free(backbone: BackboneResults, task: str) -> Interval | None:
    """The 90 % interval of `_cost`."""
    cost = _cost(backbone, task)
    return None if cost is None else cost.ci90


def _cost(backbone: BackboneResults, task: str) -> Estimate | None:
    """Accuracy of the shared probe minus that of its twin; None if unknown."""
    return ((backbone.multitask and backbone.multitask.difference) or {}).get(task)


_TASKS = ("transformation", "class")


def _contrastive_move(results: ResultsDocument) -> Claim:
    """C5: sensitivity of contrastive minus masked backbones, every pair above 0."""
    claim = _claim("C5", "Contrastive models are more sensitive to transformations than masked ones.", "number")
    kinds = _by_objective(results)
    left, right = kinds.get("contrastive", []), kinds.get("masked", [])
    groups: dict[str, list[str] | None] = {"contrastive": left, "masked": right}
    claim.groups = groups
    absent = [f"no {kind} model" for kind, names in groups.items() if not names]
    moved = {name: _sensitivity(results.backbones[name]) for name in (*left, *right)}
    absent += [f"no analysis of {name}" for name in moved if not moved[name]]
    if absent:
        return _first(claim, NOT_TESTABLE, absent)
    shared = [t for t in moved[left[0]] if all(t in each for each in moved.values())]
    if (count := count_families(shared)) < 2:
        return _first(claim, NOT_TESTABLE, ["fewer than two transformations were analysed for all backbones"])
    families = dict.fromkeys(map(family, shared))  # means over severities, which are not independent
    values = {
        name: np.array(
            [np.mean([each[t].value for t in shared if family(t) == whole]) for whole in families], np.float64
        )
        for name, each in moved.items()
    }
    photographs = {name: _over_photographs([each[t] for t in shared]) for name, each in moved.items()}
    if missing := [name for name, half in photographs.items() if half is None]:
        return _first(claim, NOT_TESTABLE, [f"sensitivities of {listed(missing)} have no intervals over photographs"])
    # the same draws of transformations for every pair
    drawn = np.random.Generator(np.random.PCG64([0, count])).integers(count, size=(_RESAMPLES, count))
    few = math.sqrt(count / (count - 1)) * float(stdtrit(count - 1, 0.975)) / 1.959964
    found: list[Difference] = []
    judged: dict[str, Judged] = {}
    for a in left:
        for b in right:
            difference_T = values[a] - values[b]
            value, ends = float(difference_T.mean()), np.percentile(difference_T[drawn].mean(axis=1), [2.5, 97.5])
            of_photographs = math.hypot(photographs[a] or 0.0, photographs[b] or 0.0)
            below, above = (math.hypot(few * (end - value), of_photographs) for end in ends.tolist())
            found.append((value, (value - below, value + above)))
            judged[f"{a} against {b}"] = (*found[-1], of_photographs)
    claim.n_transformations = count
    claim.status = _side(_estimate(claim, found), +1)
    if count < FEWEST_TRANSFORMATIONS:
        claim.status = UNDECIDED
        _add(claim, f"a verdict requires {FEWEST_TRANSFORMATIONS} transformations")
    elif claim.status == UNDECIDED:
        measured = [(results.backbones[name].entry("sampled") or {}).get("test_images") for name in (*left, *right)]
        images = min((each for each in measured if each), default=None)
        _add(claim, *(list(disagreeing(judged)) or _to_decide(results, claim, judged, images=images)))
    _add(claim, f"sensitivity is 1 − centred cosine to the original photograph, over {count} transformations")
    _add(claim, *_contrast(results, left, right))
    return _held_back(results, claim, [], [])


def _sensitivity(backbone: BackboneResults) -> dict[str, Estimate]:
    """Sensitivities that are known, by transformation."""
    return {t: moved for t, moved in (backbone.sensitivity or {}).items() if moved is not None}


def _over_photographs(sensitivities: Sequence[Estimate]) -> float | None:
    """Half the 95 % interval of a backbone's mean sensitivity over photographs; None if unknown.

    An upper bound, by the mean of the transformations' half intervals: all are measured on the same photographs, so
    their errors do not average out.
    """
    halves = [(ends[1] - ends[0]) / 2 for each in sensitivities if (ends := each.interval) is not None]
    return float(np.mean(halves)) if len(halves) == len(sensitivities) else None


def _moving_is_no_weakness(results: ResultsDocument) -> Claim:
    """C6: rank correlation over backbones between sensitivity and loss of class accuracy on other photographs."""
    claim = _claim("C6", "Sensitivity to transformations does not imply poor robustness to domain shift.", "number")
    row = (results.robustness or [Robustness()])[-1]  # the mean of all shifts, or the only one
    points = [name for name in results.networks() if name in (row.backbones or {})]
    claim.groups, claim.margin = {"shifted": points}, STRONG
    if len(points) < FEWEST_CORRELATED:
        needed = f"requires {FEWEST_CORRELATED} trained backbones with [shift] photographs or corruptions"
        return _first(claim, NOT_TESTABLE, [f"{needed}; got {len(points)}"])
    if row.spearman is None or (by_images := row.spearman.interval) is None:
        _add(claim, "all backbones have the same sensitivity or the same loss")
        return _held_back(results, claim, points, [("class", "linear")])
    correlation = row.spearman.value
    claim.estimate = Estimate(value=correlation)
    _add(claim, f"over {len(points)} backbones, of sensitivity and loss: {shown_correlations(row)}")
    if len(points) < FEWEST_DECIDED:
        _add(claim, f"a verdict requires {FEWEST_DECIDED} backbones")
    else:
        by_backbones = correlation_interval(correlation, len(points))
        low, high = min(by_images[0], by_backbones[0]), max(by_images[1], by_backbones[1])
        claim.estimate = Estimate(value=correlation, low=low, high=high)
        claim.status = CONTRADICTED if low > 0 else SUPPORTED if high < STRONG else UNDECIDED
        _add(claim, "the interval covers those over photographs and over backbones")
        if claim.status == UNDECIDED:
            count = backbones_needed(correlation, STRONG, len(points))
            more = f"about {(count or 0) - len(points)} more backbones" if count else "nothing within reach"
            _add(claim, f"to decide: {'more photographs of the shift' if count == len(points) else more}")
    return _held_back(results, claim, points, [("class", "linear")])


def _claim(identity: str, statement: str, unit: str = "points") -> Claim:
    return Claim(id=identity, statement=statement, status=UNDECIDED, groups={}, unit=unit, reasons=[])


def _add(claim: Claim, *reasons: str) -> None:
    claim.reasons = [*(claim.reasons or []), *reasons]


def _first(claim: Claim, status: Status, reasons: Sequence[str]) -> Claim:
    """Set the status, for reasons that come before all others."""
    return claim.model_copy(update={"status": status, "reasons": [*reasons, *(claim.reasons or [])]})


def _layers_only(results: ResultsDocument) -> str:
    """Note that layers are left out, where a study has nothing else."""
    left_out = not results.networks() and results.real()
    return "; layers are not compared, add the network's own output" if left_out else ""


def _by_objective(results: ResultsDocument) -> dict[str, list[str]]:
    """Trained networks by training objective; "" if unknown."""
    found: dict[str, list[str]] = {}
    for name in results.networks():
        found.setdefault(results.backbones[name].facts.objective or "", []).append(name)
    return found


def _differences(
    results: ResultsDocument, task: str, metric: str, left: Sequence[str], right: Sequence[str]
) -> list[Difference]:
    """Left minus right for all compared pairs, with intervals over photographs and transformations."""
    return [(value, ends) for value, ends, _ in _pairs(results, task, metric, left, right).values()]


def _pairs(
    results: ResultsDocument,
    task: str,
    metric: str,
    left: Sequence[str],
    right: Sequence[str],
) -> dict[tuple[str, str], Judged]:
    """Left minus right for all compared pairs."""
    rows, unseen = results.compared(task, metric), task == _UNSEEN_STYLES[0]
    if unseen:
        rows = {(row.a, row.b): row for row in _contrasts(results)}
    pairs = [pair for a, b in rows for pair in ((a, b), (b, a)) if pair[0] in left and pair[1] in right]
    known = {pair: each for pair in pairs if (each := difference(rows, *pair)) is not None}
    if unseen:  # over generators
        return {pair: (own.value, own.interval, half_width(own.value, own.interval)) for pair, own in known.items()}
    return {pair: _judged(own) for pair, own in known.items()}


def _contrasts(results: ResultsDocument) -> list[Any]:
    """Differences on the styles of unseen generators."""
    found = results.entry("generators")
    return [row for row in found.contrasts or [] if row.difference is not None] if found else []


def _pairs_decide(
    results: ResultsDocument,
    identity: str,
    statement: str,
    objective: str,
    score: tuple[str, str],
    sign: int,
    other: str = "",
) -> Claim:
    """C1 to C3: backbones with an objective minus trained ones with another; unknown objectives are in neither.

    The verdict is from the two-way intervals of all pairs: all on the side of ``sign``, all on the other, or neither.

    Args:
        other: objective of the others; by default all but ``objective``.
    """
    claim, kinds, (task, metric) = _claim(identity, statement), _by_objective(results), score
    left = kinds.get(objective, [])
    others = [other] if other else [kind for kind in kinds if kind not in ("", "none", objective)]
    right = [name for kind in others for name in kinds.get(kind, [])]
    claim.groups = {objective: left, other or "others": right}
    if kinds.get(""):
        _add(claim, f"excluded, objective unknown: {listed(kinds[''])}")
    kind = _KIND.get(objective, objective)
    absent = [] if left else [f"no {kind} model{_layers_only(results)}"]
    absent += [] if right else [f"no {_KIND.get(other, other) or 'trained'} model{'' if other else ' of another kind'}"]
    found = _differences(results, task, metric, left, right)
    if not absent and not found:
        absent = [f"no pairs were compared by {_SCORES[score]}"]
    if absent:
        return _first(claim, NOT_TESTABLE, absent)
    claim.n_transformations = _transformations(results, task, metric, left[0])
    claim.status = _side(_estimate(claim, found), sign)
    _add(claim, f"{len(left)} {kind} and {len(right)} {other or 'other'} backbones, {_SCORES[score]}, linear probes")
    if min(len(left), len(right)) == 1:
        _add(claim, f"a verdict on {listed(left)} against {listed(right)}, not on their kinds")
    if len(found) < len(left) * len(right):
        claim.status = UNDECIDED
        _add(claim, f"only {len(found)} of {len(left) * len(right)} pairs were compared")
    elif claim.status == UNDECIDED:
        _add(claim, *_would_decide(results, claim, score, left, right))
    _add(claim, *_contrast(results, left, right))
    equal = _differences(results, f"equal_{task}", metric, left, right)
    widths = {results.backbones[name].dim for name in (*left, *right)}
    if equal:
        _add(claim, f"at equal width: {_shown(equal)}")
    else:
        _add(claim, "widths are equal" if len(widths) == 1 else "not probed at equal width")
    part = "kind_rotation" if task == "rotation" else task
    reached = {name: getattr(_probe(results, name, part), metric, None) for name in (STATISTICS, *left, *right)}
    statistics = reached.pop(STATISTICS)
    trained = [score.value for score in reached.values() if score is not None]
    above = sum(statistics.value > value for value in trained) if statistics is not None else 0
    _add(
        claim,
        f"{STATISTICS} was not probed"
        if statistics is None
        else f"{STATISTICS} reaches {show(statistics)}%, more than {above} of the {len(trained)} trained backbones",
    )
    return _held_back(results, claim, [*left, *right], [(part, "linear")])


def _probe(results: ResultsDocument, name: str, task: str, head: str = "linear") -> Any:  # noqa: ANN401
    """The probe of a backbone, or its results on unseen generators; None if missing."""
    if task == _UNSEEN_STYLES[0]:
        return results.entries(task).get(name)
    return results.probe(name, task, head)


_SCORES = {
    _STYLE: "transformation accuracy",
    _HELD_OUT_STYLES: "accuracy on painting styles held out in turn",
    _UNSEEN_STYLES: "accuracy on painting styles of unseen generators",
}


def _would_decide(
    results: ResultsDocument, claim: Claim, score: tuple[str, str], left: Sequence[str], right: Sequence[str]
) -> Iterator[str]:
    """What would decide the pair that is least clear; or that pairs are clear, and disagree."""
    pairs = _pairs(results, *score, left, right)
    disagree = list(disagreeing({f"{a} minus {b}": each for (a, b), each in pairs.items()}))
    if disagree:
        yield from disagree
    elif score is not _UNSEEN_STYLES:
        named = {f"{a} against {b}": each for (a, b), each in pairs.items()}
        yield from _to_decide(results, claim, named, "styles" if score is _HELD_OUT_STYLES else "transformations")
    elif (pair := least_clear(pairs)) is not None:
        yield f"to decide {' against '.join(pair)}: {_generators(results, *pair)}"


def _to_decide(
    results: ResultsDocument,
    claim: Claim,
    pairs: Mapping[str, Judged],
    transformations: str = "transformations",
    images: int | None = None,
) -> Iterator[str]:
    """What would decide the difference that is least clear.

    Args:
        transformations: what those that were resampled are called.
        images: number of photographs that were measured, if not all test photographs.
    """
    count, photographs = _drawn(results)
    if count and claim.n_transformations:
        units = {photographs: min(count, images or count), transformations: claim.n_transformations}
        for needed in to_decide(pairs, units):
            capped = images is not None and images < count and photographs in needed
            yield needed + ", with a higher analysis.max_images" * capped


def _drawn(results: ResultsDocument) -> tuple[int, str]:
    """Number and name of the units of the bootstrap; 0 if unknown."""
    resampled = results.resampled or Resampling()
    if resampled.by == "folder" and resampled.groups:
        return resampled.groups, "folders of test photographs"
    return (results.splits or {}).get("test") or 0, "test photographs"


def _generators(results: ResultsDocument, a: str, b: str) -> str:
    """What would decide a contrast over generators."""
    (own,) = (row.difference for row in _contrasts(results) if {row.a, row.b} == {a, b})
    others = math.hypot(own.se_photographs or 0.0, own.se_training or 0.0)
    count = len(results.entries("generators")[a].generators or [])
    return more_generators(own.value, own.se_generators or 0.0, others, count, LEVEL)


def _transformations(results: ResultsDocument, task: str, metric: str, name: str) -> int:
    if task == "transformation":
        return results.suite_size
    if task == _UNSEEN_STYLES[0]:
        found = next(iter(results.entries(task).values()), None)
        return len((found and found.by_style) or {})
    turned = _turned(results, name)
    by_transformation = (turned and turned.by_transformation) or {}
    styles = [row.name for row in results.transformations if metric != "styles" or row.kind == "style"]
    return count_families(t for t in styles if t in by_transformation)


def _contrast(results: ResultsDocument, left: Sequence[str], right: Sequence[str]) -> list[str]:
    """Describe differences between two groups in architecture, data, parameters and width."""
    sides = [[results.backbones[name] for name in names] for names in (left, right)]

    def known(read: Callable[[BackboneResults], Any]) -> list[list[Any]]:
        return [[value for own in side if (value := read(own)) not in (None, "")] for side in sides]

    architecture, data = known(lambda own: own.facts.architecture), known(lambda own: own.facts.data)
    differ = [
        word
        for word, (a, b) in (("architecture", architecture), ("data", data))
        if set(a) != set(b) or len(a) < len(left) or len(b) < len(right)  # unknown counts as different
    ]
    parts = (
        [f"{' and '.join(differ)} {'differ' if len(differ) > 1 or differ == ['data'] else 'differs'}"] if differ else []
    )
    millions = known(lambda own: own.facts.parameters and own.facts.parameters / 1e6)
    for word, (a, b), form in (("parameters", millions, "{:.3g} M"), ("width", known(lambda own: own.dim), "{}")):
        if a and b and set(a) != set(b):
            parts.append(f"{word} {_span(a, form)} against {_span(b, form)}")
    sets = [", ".join(dict.fromkeys(own)) or "unknown data" for own in data]
    if sets[0] != sets[1]:
        parts.append(f"trained on {sets[0]} against {sets[1]}")
    return parts


def _span(values: Sequence[float], form: str) -> str:
    low, high = min(values), max(values)
    return form.format(low) if low == high else f"{form.format(low)} to {form.format(high)}"


def _estimate(claim: Claim, found: Sequence[Difference]) -> Sequence[Difference]:
    """Set the mean of the differences and, if all have intervals, their span."""
    mean = float(np.mean([value for value, _ in found]))
    ends = [interval for _, interval in found if interval is not None]
    if len(ends) == len(found):
        claim.estimate = Estimate(value=mean, low=min(low for low, _ in ends), high=max(high for _, high in ends))
    else:
        claim.estimate = Estimate(value=mean)
        _add(claim, "a difference has no interval over transformations")
    return found


def _side(found: Sequence[Difference], sign: int) -> Status:
    """Supported if all intervals are on the side of ``sign``, contradicted if all are on the other."""
    ends = [interval for _, interval in found if interval is not None]
    if not ends or len(ends) < len(found):
        return UNDECIDED
    above, below = all(low > 0 for low, _ in ends), all(high < 0 for _, high in ends)
    if above or below:
        return SUPPORTED if above == (sign > 0) else CONTRADICTED
    return UNDECIDED


def _shown(found: Sequence[Difference]) -> str:
    """Format as ``+3.1 points (+1.0 to +5.2)``."""
    claim = _claim("", "")
    _estimate(claim, found)
    ends = show_interval(claim.estimate, "points")
    return f"{show(claim.estimate, 'points')} points" + (f" ({ends})" if ends else "")


def _held_back(results: ResultsDocument, claim: Claim, names: Sequence[str], used: Sequence[tuple[str, str]]) -> Claim:
    """Set the claim to undecided if a probe has not converged or there are too few test photographs."""
    late = [
        f"{name} ({(task + ' ' + head).strip().replace('_', ' ')})"
        for name in names
        for task, head in used
        if (probe := _probe(results, name, task, head or "mlp")) is None or probe.converged is not True
    ]
    reasons = [f"not converged, or unknown: {listed(late)}"] if late else []
    photographs, resampled = (results.splits or {}).get("test"), results.resampled or Resampling()
    if photographs is None or photographs < FEWEST_PHOTOGRAPHS:
        count = "an unknown number of" if photographs is None else str(photographs)
        reasons.append(f"{count} test photographs, fewer than {FEWEST_PHOTOGRAPHS}")
    elif resampled.groups is not None and resampled.groups < FEWEST_PHOTOGRAPHS:
        units = "folders" if resampled.by == "folder" else "distinct pictures"
        reasons.append(f"test photographs of {resampled.groups} {units}, fewer than {FEWEST_PHOTOGRAPHS}")
    return _first(claim, UNDECIDED, reasons) if reasons else claim
