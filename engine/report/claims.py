"""Verdicts on six claims of "Substance or Style: What Does Your Image Embedding Know?" (arXiv 2307.05610).

Verdicts are functions of results.json. They compare the training objectives stated by backbones, and apply only to the
backbones, photographs and transformations of the study. Layers of a network are not compared, only its own output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from substyle.engine.report.data import Results, dig, minus, networks, real, scored, show, show_interval
from substyle.engine.report.findings import (
    MARGIN,
    Difference,
    across_generators,
    compared,
    difference,
    listed,
    within_margin,
)

Claim = dict[str, Any]
FEWEST_PHOTOGRAPHS = 100  # minimum test photographs for a verdict
# minimum backbones for a rank correlation (of three, one order in six is perfect), and for a verdict on it
FEWEST_CORRELATED, FEWEST_DECIDED = 4, 6
STRONG = 0.5  # rank correlation that counts as "implies"
STATISTICS = "control:statistics"
SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTABLE = "supported", "contradicted", "undecided", "not testable"
_KIND = {"image_text": "image-text"}
_RESAMPLES = 2000


def claims(results: Results) -> list[Claim]:
    """Create ``claims`` of results.json: C1 to C6 with verdicts.

    Args:
        results: results.json with ``backbones``, ``comparisons`` and optional analyses and ``robustness``.

    Returns:
        for each claim ``id``, ``statement``, ``status`` (supported, contradicted, undecided, not testable), ``groups``
        (backbones by kind), ``estimate`` (mean of the pairs' differences in accuracy, in [-1, 1]; for C5 in
        sensitivity; for C6 a rank correlation; see ``unit``), ``ci`` (from the lowest lower to the highest upper end of
        the pairs' 95 % intervals), ``margin`` of equivalence or null, ``n_transformations`` (resampled transformations)
        and ``reasons``.
    """
    return [
        _pairs_decide(results, "C1", "Masked models predict the transformation best.", "masked", _STYLE, +1),
        _image_text_leads(results),
        _pairs_decide(results, "C3", _C3, "supervised", _STYLE, -1),
        *(make(results) for make in (_mlp_is_free, _contrastive_move, _moving_is_no_weakness)),
    ]


_C2 = "Image-text models generalise better to held-out transformations, especially to held-out styles."
_C3 = "Foundation models retain more of the transformation than supervised ones."
_STYLE, _HELD_OUT_STYLES = ("fine", "accuracy"), ("rotation", "styles")


def _image_text_leads(results: Results) -> Claim:
    """C2: image-text minus others on painting styles held out in turn, every pair above 0."""
    claim = _pairs_decide(results, "C2", _C2, "image_text", _HELD_OUT_STYLES, +1)
    left, right = claim["groups"].values()
    crossed = across_generators(results, "linear", [*left, *right]).strip()
    styles = any(dig(row, "coarse") == "style" for row in results["transformations"])
    one = "all styles come from one generator, whose fingerprint a probe may learn"
    claim["reasons"].append(crossed.rstrip(".") or (one if styles else "no painting styles among the transformations"))
    if every := _differences(results, "rotation", "accuracy", left, right):
        claim["reasons"].append(f"over all transformations held out in turn: {_shown(every)}")
    return claim


def _mlp_is_free(results: Results) -> Claim:
    """C4: MLP minus linear above 0 for all backbones, and the shared probe equivalent to its twins in both tasks."""
    claim = _claim(
        "C4", "An MLP extracts more than a linear probe, and sharing it with the class task costs no accuracy."
    )
    names = networks(results)
    claim |= {"groups": {"trained": names}, "margin": MARGIN, "n_transformations": len(results["transformations"])}
    rows = compared(results, "fine", "accuracy", "mlp-linear")
    found = [each for name in names if (each := difference(rows, name, name, "two_way_ci95")) is not None]
    shared = {name: dig(results, "backbones", name, "multitask", "difference") for name in names}
    costs = [(name, task, dig(shared[name], task, "ci90")) for name in names for task in ("fine", "semantic")]
    absent = [] if names else [f"no trained network{_layers_only(results)}"]
    absent += ["MLP or linear style probes are missing for some backbones"] * (len(found) < len(names))
    absent += ["multi-task probes are missing for some backbones"] * any(ends is None for _, _, ends in costs)
    if found:
        _estimate(claim, found)
        claim["reasons"].append(f"MLP minus linear: {_shown(found)}, on {len(found)} backbone{'s' * (len(found) != 1)}")
    if absent:
        return _not_testable(claim, absent)
    free = {(name, task): within_margin(ends) for name, task, ends in costs}
    apart = [f"{name} ({_TASKS[task]})" for (name, task), equal in free.items() if not equal]
    claim["reasons"].append(
        f"the shared probe is not shown to be equivalent within 1 point on {listed(apart)}"
        if apart
        else "the shared probe is equivalent to its twins within 1 point in both tasks for all backbones"
    )
    dearer = all(min(ends[1] for each, _, ends in costs if each == name) < -MARGIN for name in names)
    gain = _side(found, +1)
    if gain == SUPPORTED and not apart:
        claim["status"] = SUPPORTED
    elif gain == CONTRADICTED or dearer:
        claim["status"] = CONTRADICTED
    used = [("fine", "linear"), ("fine", "mlp"), ("multitask", "")]
    return _held_back(results, claim, names, used)


_TASKS = {"fine": "style", "semantic": "class"}


def _contrastive_move(results: Results) -> Claim:
    """C5: sensitivity of contrastive minus masked backbones, every pair above 0."""
    claim = _claim("C5", "Contrastive models are more sensitive to transformations than masked ones.", "number")
    kinds = _by_objective(results)
    left, right = kinds.get("contrastive", []), kinds.get("masked", [])
    claim["groups"] = {"contrastive": left, "masked": right}
    absent = [f"no {kind} model" for kind, names in claim["groups"].items() if not names]
    moved = {name: dig(results, "backbones", name, "sensitivity") or {} for name in (*left, *right)}
    absent += [f"no analysis of {name}" for name in moved if not moved[name]]
    if absent:
        return _not_testable(claim, absent)
    shared = [t for t in moved[left[0]] if all(each.get(t) is not None for each in moved.values())]
    if len(shared) < 2:
        return _not_testable(claim, ["fewer than two transformations were analysed for all backbones"])
    values = {name: np.array([each[t] for t in shared], np.float64) for name, each in moved.items()}
    photographs = {name: _over_photographs(results, name, shared) for name in values}
    if missing := [name for name, half in photographs.items() if half is None]:
        return _not_testable(claim, [f"sensitivities of {listed(missing)} have no intervals over photographs"])
    # the same draws of transformations for every pair
    drawn = np.random.Generator(np.random.PCG64([0, len(shared)])).integers(len(shared), size=(_RESAMPLES, len(shared)))
    few = math.sqrt(len(shared) / (len(shared) - 1)) * float(stdtrit(len(shared) - 1, 0.975)) / 1.959964
    found: list[Difference] = []
    for a in left:
        for b in right:
            difference_T = values[a] - values[b]
            value, ends = float(difference_T.mean()), np.percentile(difference_T[drawn].mean(axis=1), [2.5, 97.5])
            of_photographs = math.hypot(photographs[a] or 0.0, photographs[b] or 0.0)
            below, above = (math.hypot(few * (end - value), of_photographs) for end in ends.tolist())
            found.append((value, (value - below, value + above)))
    claim["n_transformations"] = len(shared)
    claim["status"] = _side(_estimate(claim, found), +1)
    claim["reasons"] += [
        f"sensitivity is 1 − centred cosine to the unchanged photograph, over {len(shared)} transformations"
    ]
    claim["reasons"] += _contrast(results, left, right)
    return _held_back(results, claim, [], [])


def _over_photographs(results: Results, name: str, transformations: Sequence[str]) -> float | None:
    """Half the 95 % interval of a backbone's mean sensitivity over photographs; None if unknown.

    An upper bound, by the mean of the transformations' half intervals: all are measured on the same photographs, so
    their errors do not average out.
    """
    ends = [dig(results, "backbones", name, "sensitivity_ci95", t) for t in transformations]
    return None if any(each is None for each in ends) else float(np.mean([(high - low) / 2 for low, high in ends]))


def _moving_is_no_weakness(results: Results) -> Claim:
    """C6: rank correlation over backbones between sensitivity and loss of class accuracy on other photographs."""
    claim = _claim("C6", "Sensitivity to transformations does not imply poor robustness to domain shift.", "number")
    row = (results.get("robustness") or [{}])[-1]  # the mean of all shifts, or the only one
    points = [name for name in networks(results) if name in (row.get("backbones") or {})]
    claim |= {"groups": {"shifted": points}, "margin": STRONG}
    if len(points) < FEWEST_CORRELATED:
        needed = f"requires {FEWEST_CORRELATED} trained backbones with [shift] photographs or corruptions"
        return _not_testable(claim, [f"{needed}; got {len(points)}"])
    correlation, by_images = row["spearman"], row["spearman_ci95"]
    if correlation is None or by_images is None:
        claim["reasons"].append("all backbones have the same sensitivity or the same loss")
        return _held_back(results, claim, points, [("semantic", "linear")])
    claim["estimate"] = correlation
    claim["reasons"].append(f"over {len(points)} backbones, of sensitivity and loss: {shown_correlations(row)}")
    if len(points) < FEWEST_DECIDED:
        claim["reasons"].append(f"a verdict requires {FEWEST_DECIDED} backbones")
    else:
        by_backbones = correlation_interval(correlation, len(points))
        claim["ci"] = low, high = [min(by_images[0], by_backbones[0]), max(by_images[1], by_backbones[1])]
        claim["status"] = CONTRADICTED if low > 0 else SUPPORTED if high < STRONG else UNDECIDED
        claim["reasons"].append("the interval covers those over photographs and over backbones")
    return _held_back(results, claim, points, [("semantic", "linear")])


def shown_correlations(row: dict[str, Any]) -> str:
    """Format as ``Spearman's rho +0.60 (+0.20 to +0.80), Kendall's tau +0.40 (…), 95 % over photographs``."""
    texts = []
    for key, name in (("spearman", "Spearman's rho"), ("kendall", "Kendall's tau")):
        if (found := scored(row, key)) is not None:
            value, *interval = (None if each is None else minus(f"{each:+.2f}") for each in found)
            texts.append(f"{name} {value}" + (f" ({' to '.join(map(str, interval))})" if None not in interval else ""))
    return f"{', '.join(texts)}, 95 % over photographs"


def correlation_interval(correlation: float, count: int) -> list[float]:
    """95 % interval of a rank correlation of ``count`` > 3 pairs.

    Source: Fieller, Hartley and Pearson, "Tests for rank correlation coefficients I", Biometrika 44, 1957: Fisher's z
    has the variance 1.06 / (count − 3).
    """
    z = math.atanh(min(max(correlation, -1 + 1e-12), 1 - 1e-12))
    half = 1.959964 * math.sqrt(1.06 / (count - 3))
    return [math.tanh(z - half), math.tanh(z + half)]


def _claim(identity: str, statement: str, unit: str = "points") -> Claim:
    claim: Claim = {"id": identity, "statement": statement, "status": UNDECIDED, "groups": {}, "unit": unit}
    return claim | {"estimate": None, "ci": None, "margin": None, "n_transformations": None, "reasons": []}


def _layers_only(results: Results) -> str:
    """Note that layers and tokens are left out, where a study has nothing else."""
    left_out = not networks(results) and real(results)
    return "; layers and tokens are not compared, add the network's own output" if left_out else ""


def _by_objective(results: Results) -> dict[str, list[str]]:
    """Trained networks by training objective; "" if unknown."""
    found: dict[str, list[str]] = {}
    for name in networks(results):
        found.setdefault(dig(results, "backbones", name, "spec", "objective") or "", []).append(name)
    return found


def _differences(
    results: Results, task: str, metric: str, left: Sequence[str], right: Sequence[str]
) -> list[Difference]:
    """Left minus right for all compared pairs."""
    rows = compared(results, task, metric)
    pairs = [pair for a, b in rows for pair in ((a, b), (b, a)) if pair[0] in left and pair[1] in right]
    return [each for pair in pairs if (each := difference(rows, *pair, "two_way_ci95")) is not None]


def _pairs_decide(
    results: Results, identity: str, statement: str, objective: str, score: tuple[str, str], sign: int
) -> Claim:
    """C1 to C3: backbones with an objective minus trained ones with another; unknown objectives are in neither.

    The verdict is from the two-way intervals of all pairs: all on the side of ``sign``, all on the other, or neither.
    """
    claim, kinds, (task, metric) = _claim(identity, statement), _by_objective(results), score
    left = kinds.get(objective, [])
    right = [name for kind, names in kinds.items() for name in names if kind not in ("", "none", objective)]
    claim["groups"] = {objective: left, "others": right}
    if kinds.get(""):
        claim["reasons"].append(f"excluded, objective unknown: {listed(kinds[''])}")
    kind = _KIND.get(objective, objective)
    absent = [] if left else [f"no {kind} model{_layers_only(results)}"]
    absent += [] if right else ["no trained model of another kind"]
    found = _differences(results, task, metric, left, right)
    if not absent and not found:
        absent = [f"no pairs were compared by {_SCORES[score]}"]
    if absent:
        return _not_testable(claim, absent)
    claim["n_transformations"] = _transformations(results, task, metric, left[0])
    claim["status"] = _side(_estimate(claim, found), sign)
    claim["reasons"] += [f"{len(left)} {kind} and {len(right)} other backbones, {_SCORES[score]}, linear probes"]
    if len(found) < len(left) * len(right):
        claim["status"] = UNDECIDED
        claim["reasons"].append(f"only {len(found)} of {len(left) * len(right)} pairs were compared")
    claim["reasons"] += _contrast(results, left, right)
    equal = _differences(results, f"equal_{task}", metric, left, right)
    widths = {dig(results, "backbones", name, "dim") for name in (*left, *right)}
    if equal:
        claim["reasons"].append(f"at equal width: {_shown(equal)}")
    else:
        claim["reasons"].append("widths are equal" if len(widths) == 1 else "not probed at equal width")
    part = "coarse_rotation" if task == "rotation" else task
    reached = {n: dig(results, "backbones", n, part, "linear", metric) for n in (STATISTICS, *left, *right)}
    statistics, *trained = (value for name, value in reached.items() if value is not None or name == STATISTICS)
    above = sum(statistics > value for value in trained) if statistics is not None else 0
    claim["reasons"].append(
        f"{STATISTICS} was not probed"
        if statistics is None
        else f"{STATISTICS} reaches {show(statistics)}%, more than {above} of the {len(trained)} trained backbones"
    )
    return _held_back(results, claim, [*left, *right], [(part, "linear")])


_SCORES = {_STYLE: "style accuracy", _HELD_OUT_STYLES: "accuracy on styles held out in turn"}


def _transformations(results: Results, task: str, metric: str, name: str) -> int:
    if task == "fine":
        return len(results["transformations"])
    turned = dig(results, "backbones", name, "coarse_rotation", "linear", "by_transformation") or {}
    styles = [row["name"] for row in results["transformations"] if metric != "styles" or row["coarse"] == "style"]
    return sum(t in turned for t in styles)


def _contrast(results: Results, left: Sequence[str], right: Sequence[str]) -> list[str]:
    """Describe differences between two groups in architecture, data, parameters and width."""

    def facts(names: Sequence[str], read: Callable[[str], Any]) -> list[Any]:
        return [value for name in names if (value := read(name)) not in (None, "")]

    def spec(key: str) -> Callable[[str], Any]:
        return lambda name: dig(results, "backbones", name, "spec", key)

    differ = []
    for key, word in (("architecture", "architecture"), ("data", "data")):
        a, b = facts(left, spec(key)), facts(right, spec(key))
        if set(a) != set(b) or len(a) < len(left) or len(b) < len(right):  # unknown counts as different
            differ.append(word)
    parts = (
        [f"{' and '.join(differ)} {'differ' if len(differ) > 1 or differ == ['data'] else 'differs'}"] if differ else []
    )
    wanted: tuple[tuple[str, Callable[[str], Any], Callable[[Any], str]], ...] = (
        ("parameters", spec("parameters"), lambda value: f"{value / 1e6:.3g} M"),
        ("width", lambda name: dig(results, "backbones", name, "dim"), str),
    )
    for word, read, written in wanted:
        a, b = facts(left, read), facts(right, read)
        if a and b and (set(a) != set(b)):
            parts.append(f"{word} {_span(a, written)} against {_span(b, written)}")
    data = [", ".join(dict.fromkeys(facts(names, spec("data")))) or "unknown data" for names in (left, right)]
    if data[0] != data[1]:
        parts.append(f"trained on {data[0]} against {data[1]}")
    return parts


def _span(values: Sequence[float], written: Callable[[Any], str]) -> str:
    low, high = min(values), max(values)
    return written(low) if low == high else f"{written(low)} to {written(high)}"


def _estimate(claim: Claim, found: Sequence[Difference]) -> Sequence[Difference]:
    """Set the mean of the differences and, if all have intervals, their span."""
    claim["estimate"] = float(np.mean([value for value, _ in found]))
    ends = [interval for _, interval in found if interval is not None]
    if len(ends) == len(found):
        claim["ci"] = [min(low for low, _ in ends), max(high for _, high in ends)]
    else:
        claim["reasons"].append("a difference has no interval over transformations")
    return found


def _side(found: Sequence[Difference], sign: int) -> str:
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
    interval = f" ({show_interval(claim['ci'], 'points')})" if claim["ci"] else ""
    return f"{show(claim['estimate'], 'points')} points{interval}"


def _not_testable(claim: Claim, reasons: Sequence[str]) -> Claim:
    return claim | {"status": NOT_TESTABLE, "reasons": [*reasons, *claim["reasons"]]}


def _held_back(results: Results, claim: Claim, names: Sequence[str], used: Sequence[tuple[str, str]]) -> Claim:
    """Set the claim to undecided if a probe has not converged or there are too few test photographs."""
    late = [
        f"{name} ({(task + ' ' + head).strip().replace('_', ' ')})"
        for name in names
        for task, head in used
        if dig(results, "backbones", name, task, *([head] if head else []), "converged") is not True
    ]
    reasons = [f"not converged, or unknown: {listed(late)}"] if late else []
    photographs, groups = dig(results, "splits", "test"), dig(results, "resampled", "groups")
    if photographs is None or photographs < FEWEST_PHOTOGRAPHS:
        count = "an unknown number of" if photographs is None else str(photographs)
        reasons.append(f"{count} test photographs, fewer than {FEWEST_PHOTOGRAPHS}")
    elif groups is not None and groups < FEWEST_PHOTOGRAPHS:
        units = "folders" if dig(results, "resampled", "by") == "folder" else "distinct pictures"
        reasons.append(f"test photographs of {groups} {units}, fewer than {FEWEST_PHOTOGRAPHS}")
    if not reasons:
        return claim
    return claim | {"status": UNDECIDED, "reasons": [*reasons, *claim["reasons"]]}
