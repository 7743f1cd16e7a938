"""Simulated studies whose truth is known, for `benchmarks.coverage`: one function for each kind of interval or test.

Scores are drawn here; intervals, p values and verdicts are those of the report's own functions. Arrays have K studies
along their first axis. Means of uniform effects (``± half``) are the truth, since no probability leaves 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import binomtest, norm

from substyle.engine.analysis import geometry
from substyle.engine.analysis.geometry import bootstrap_mean
from substyle.engine.analysis.neighbors import interval as ami_interval
from substyle.engine.analysis.robustness import Replicates, rank_correlations
from substyle.engine.analysis.robustness import robustness as correlations_of
from substyle.engine.analysis.similarity import similarity as similarity_of
from substyle.engine.config import AnalysisConfig
from substyle.engine.extensions.attack.detection import FALSE_POSITIVES, detection
from substyle.engine.extensions.claims.claims import NOT_TESTABLE, STRONG, UNDECIDED, claims
from substyle.engine.extensions.generators.stage import contrast
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.crossed import Crossed
from substyle.engine.probes.outcomes import ProbeOutcome, compare_outcomes
from substyle.engine.probes.outcomes import holm as holm_corrected
from substyle.engine.probes.resampling import ACCURACY, Bounds, Resampled, by_class, resample, uniform_over
from substyle.engine.probes.ridge import Response, scored_on
from substyle.engine.probes.single_task import Judged, by_severity
from substyle.engine.report.findings import LEVEL, within_margin
from substyle.engine.results.model import SCHEMA, Estimate, entry_of
from substyle.engine.results.statistics import FEWEST_DECIDED, correlation_interval
from substyle.engine.stages.few_shot import widened
from substyle.engine.stages.results import validate_results
from substyle.engine.store.layout import TEST
from substyle.engine.store.table import EmbeddingTable

F64 = NDArray[np.float64]
Scores = NDArray[Any]
Rng = np.random.Generator
BOOTSTRAP = ProbeConfig().bootstrap


@dataclass(frozen=True)
class Simulated:
    """K simulated studies.

    Attributes:
        ends: their 95 % intervals, None where the product gives none; empty if only verdicts are simulated.
        truth: what the intervals should contain.
        rivals: (K, 2) intervals of other methods on the same data, by name.
        false: whether a study says what is not so; empty if it gives no verdict.
    """

    ends: list[Any]
    truth: float = 0.0
    rivals: dict[str, F64] = field(default_factory=dict)
    false: list[bool] = field(default_factory=list)


def proportion(rng: Rng, count: int, seed: int, units: int, p: float) -> Simulated:
    """An accuracy on one transformation."""
    right_KTN = rng.random((count, 1, units)) < p
    ends = [each.one(0).ci95 for each in _resampled(right_KTN, seed)]
    right_K = right_KTN.sum(axis=(1, 2))
    return Simulated(ends, p, {name: _binomial(units, name)[right_K] for name in ("wilson", "exact")})


def one_way(rng: Rng, count: int, seed: int, units: int, mean: float) -> Simulated:
    """A mean over transformations, of which photographs are a sample."""
    right_KTN = rng.random((count, 31, units)) < _difficulty(rng, mean, (count, 1, units))
    ends = [each.mean(np.ones(31)).ci95 for each in _resampled(right_KTN, seed)]
    return Simulated(ends, mean, {"t": _student(right_KTN.mean(axis=1))})


def skewed(rng: Rng, count: int, seed: int, units: int, law: str) -> Simulated:
    """A mean of numbers that are no accuracies, as sensitivities are."""
    shape = count, units
    x_KN = rng.exponential(0.1, shape) if law == "exponential" else rng.lognormal(math.log(0.1) - 0.5, 1.0, shape)
    return Simulated([bootstrap_mean(x_N, np.arange(units), seed) for x_N in x_KN], 0.1, {"t": _student(x_KN)})


def two_way(rng: Rng, count: int, seed: int, units: int, law: str, photographs: int = 100) -> Simulated:
    """A mean over transformations and photographs, both of which are samples."""
    of_t, of_n = {"uniform": (0.25, 0.1), "photographs": (0.0, 0.3), "skewed": (0.0, 0.0)}[law]
    p_KTN = 0.6 + _within(rng, of_t, (count, units, 1)) + _within(rng, of_n, (count, 1, photographs))
    truth = 0.6
    if law == "skewed":
        truth = (6 * 0.98 + 0.4) / 7
        p_KTN = np.where(rng.random((count, units, 1)) < 1 / 7, 0.4, 0.98)
    right_KTN = rng.random((count, units, photographs)) < p_KTN
    ends = [each.two_way(np.ones(units)).ci95 for each in _resampled(right_KTN, seed)]
    over = {f"t over {name}": _student(right_KTN.mean(axis=i)) for name, i in (("transformations", 2), ("images", 1))}
    return Simulated(ends, truth, over)


def nested(rng: Rng, count: int, seed: int, units: int) -> Simulated:
    """A mean over kinds, whose transformations and the photographs are samples."""
    kind = [str(c) for c in range(5) for _ in range(units)]
    mean_T = np.repeat(np.linspace(0.35, 0.65, 5), units)[:, None]
    p_KTN = mean_T + _within(rng, 0.2, (count, 5 * units, 1)) + _within(rng, 0.1, (count, 1, 100))
    right_KTN = rng.random((count, 5 * units, 100)) < p_KTN
    weight_T = by_class(range(5 * units), kind)
    return Simulated([each.nested(weight_T, kind).ci95 for each in _resampled(right_KTN, seed)], 0.5)


def predicted(rng: Rng, count: int, seed: int, units: int, r2: float) -> Simulated:
    """R² of the parameters of transformations on test photographs."""
    ends = []
    for _ in range(count):
        value_N = rng.uniform(0, math.sqrt(12), units)  # of variance 1
        point_NP = (value_N + math.sqrt(1 - r2) * rng.normal(size=units))[:, None]
        scores = scored_on(Response("sigma", "px", 0.0), value_N, point_NP, np.arange(units), 2000, seed)
        ends.append(_ends(scores["r2"]))
    return Simulated(ends, r2)


def gap(rng: Rng, count: int, seed: int, units: int) -> Simulated:
    """Seen minus held-out accuracy, over transformations and photographs."""
    seen_T, held_T = (uniform_over(part, 20 + units) for part in (range(20), range(20, 20 + units)))
    p_KTN = _within(rng, 0.2, (count, 20 + units, 1)) + _within(rng, 0.05, (count, 1, 100))
    right_KTN = rng.random((count, 20 + units, 100)) < p_KTN + np.where(seen_T > 0, 0.75, 0.6)[:, None]
    judged = [Judged(each, None).estimate(seen_T, held_T, general=True) for each in _resampled(right_KTN, seed)]
    return Simulated([_ends(each) for each in judged], 0.15)


def paired(rng: Rng, count: int, seed: int, units: int, first: float, second: float) -> Simulated:
    """A difference of two accuracies on the same photographs."""
    a_KTN, b_KTN = _pair(rng, (count, 1, units), first, second)
    both = _resampled(np.concatenate([a_KTN, b_KTN], axis=1), seed)
    d_KN = a_KTN[:, 0] - b_KTN[:, 0]
    return Simulated(
        [(each.one(0) - each.one(1)).ci95 for each in both],
        first - second,
        {"t": _student(d_KN), "Bonett and Price": _bonett_price(d_KN)},
    )


def compared(rng: Rng, count: int, seed: int, units: int) -> Simulated:
    """A row of `comparisons` of two backbones with some photographs in common."""
    p_N = 0.7 + _within(rng, 0.2, (count, 1, units + units // 2))
    right = [rng.random((count, 5, p_N.shape[2])) < p_N - lower for lower in (0.0, 0.05)]
    parts = {"a": slice(0, units), "b": slice(units // 2, None)}
    outcomes = {
        name: _outcome(right_KTN[:, :, part], seed, "transformation", part.start)
        for right_KTN, (name, part) in zip(right, parts.items(), strict=True)
    }
    return Simulated([_ends(rows[0]["difference"]) for rows in _compared(outcomes, "transformation", count)], 0.05)


def grouped(rng: Rng, count: int, seed: int, units: int, mean: float, half: float) -> Simulated:
    """An accuracy on photographs of several folders, which are resampled as a whole."""
    size_G = rng.integers(1, 11, units)
    group_N = np.repeat(np.arange(units), size_G)
    right_KN = rng.random((count, len(group_N))) < (mean + _within(rng, half, (count, units)))[:, group_N]
    ends = [each.one(0).ci95 for each in _resampled(right_KN[:, None], seed, group_N)]
    value_K1 = right_KN.mean(axis=1, keepdims=True)
    error_KG = np.add.reduceat(right_KN - value_K1, np.r_[0, size_G.cumsum()[:-1]], axis=1) / size_G.mean()
    return Simulated(ends, mean, {"t over folders": _student(error_KG) + value_K1})


def neighbours(rng: Rng, count: int, seed: int, units: int, mean: float) -> Simulated:
    """Share of rows whose nearest neighbours are right."""
    hit_KNR = rng.random((count, units, 6)) < _difficulty(rng, mean, (count, units, 1))
    ends = [bootstrap_mean(hit_NR.ravel(), np.repeat(np.arange(units), 6), seed) for hit_NR in hit_KNR]
    return Simulated(ends, mean, {"t": _student(hit_KNR.mean(axis=2))})


def equivalence(
    rng: Rng, count: int, seed: int, units: int, first: float, second: float, transformations: int = 1
) -> Simulated:
    """Whether two backbones that differ by the margin are called equivalent."""
    sides = _pair(rng, (count, transformations, units), first, second)
    rows = _compared(
        {str(i): _outcome(each, seed, "transformation") for i, each in enumerate(sides)}, "transformation", count
    )
    return Simulated([], false=[within_margin(each[0]["difference"]["ci90"]) for each in rows])


def holm(rng: Rng, count: int, seed: int, units: int, task: str, training: float = 0.0) -> Simulated:
    """Whether one of four equal backbones is called better than another."""
    transformations, photographs = (5, units) if task == "transformation" else (units, 100)
    outcomes = _equal(rng, count, seed, task, transformations, photographs, 4, training)
    return Simulated([], false=[any(_below(r["p_holm"]) for r in rows) for rows in _compared(outcomes, task, count)])


def claim_pairs(rng: Rng, count: int, seed: int, units: int, right: int) -> Simulated:
    """Whether claim C1 is decided on equal networks."""
    outcomes = _equal(rng, count, seed, "rotation", units, 100, 1 + right, 0.0)
    probe = {"transformation": {"linear": {"accuracy": {"value": 0.6}, "converged": True}}}
    kinds = dict.fromkeys(outcomes, "supervised") | {"0": "masked"}
    found = []
    for rows in _compared(outcomes, "rotation", count):
        comparisons = [row | {"task": "transformation", "head": "linear"} for row in rows]
        found.append(_claim("C1", units, {name: (kind, probe) for name, kind in kinds.items()}, comparisons))
    return Simulated([], false=found)


def claim_moves(rng: Rng, count: int, seed: int, units: int) -> Simulated:
    """Whether claim C5 is decided on networks that move equally on average."""
    moved_KBT = 0.5 + _within(rng, 0.2, (count, 2, units)) + rng.normal(0, 0.02, (count, 2, 1))
    found = []
    for moved_BT in moved_KBT:
        networks = {}
        for kind, moved_T in zip(("contrastive", "masked"), moved_BT.tolist(), strict=True):
            half = 1.96 * 0.02
            sensitivity = {f"t{t}": entry_of(value, (value - half, value + half)) for t, value in enumerate(moved_T)}
            networks[kind] = kind, {"sensitivity": sensitivity}
        found.append(_claim("C5", units, networks, []))
    return Simulated([], false=found)


def correlation(rng: Rng, count: int, seed: int, units: int, rho: float) -> Simulated:
    """A rank correlation over backbones, and the verdicts of claim C6 on it."""
    x_KB, e_KB = rng.normal(size=(2, count, units))
    normal = 2 * math.sin(math.pi * rho / 6)
    value_K = rank_correlations(x_KB, normal * x_KB + math.sqrt(1 - normal**2) * e_KB)[0]
    ends = [correlation_interval(value, units) for value in value_K.tolist()]
    false = [(low > 0 and rho <= 0) or (high < STRONG and rho >= STRONG) for low, high in ends]
    return Simulated(ends, rho, false=false if units >= FEWEST_DECIDED else [])


def robustness(rng: Rng, count: int, seed: int, units: int, backbones: int, measure: str) -> Simulated:
    """A rank correlation of given backbones, whose sensitivities and losses are means over photographs."""
    moved_B = 0.3 + 0.4 * np.arange(backbones) / backbones
    lost_B = 0.1 + 0.3 * np.argsort(np.sin(2 * np.arange(backbones))) / backbones
    truth = dict(zip(("spearman", "kendall"), rank_correlations(moved_B[None], lost_B[None]), strict=True))
    moved_KBN = moved_B[:, None] * rng.uniform(0.5, 1.5, (count, 1, units)) + rng.normal(
        0, 0.1, (count, backbones, units)
    )
    level_KBN = rng.random((count, backbones, units))
    right_KTN = np.concatenate([level_KBN < 0.9, level_KBN < 0.9 - lost_B[:, None]], axis=1)
    ends = []
    for moved, right in zip(_resampled(moved_KBN, seed, bounds=None), _resampled(right_KTN, seed), strict=True):
        points = {
            str(b): Replicates(moved.one(b), {"shift": right.one(b) - right.one(backbones + b)})
            for b in range(backbones)
        }
        ends.append(_ends(correlations_of(points)[0][measure]))
    return Simulated(ends, float(truth[measure][0]))


def ami(rng: Rng, count: int, seed: int, units: int, share: float) -> Simulated:
    """Adjusted mutual information of clusters and transformations; the truth is that of infinitely many rows."""
    row_R = np.tile(np.arange(6), units)
    group_R = np.repeat(np.arange(units), 6)
    cluster_KR = np.where(rng.random((count, len(row_R))) < share, row_R, rng.integers(6, size=(count, len(row_R))))
    p_C = np.full(6, (1 - share) / 6) + share * np.eye(6)[0]
    truth = 1 + float((p_C * np.log(p_C)).sum()) / math.log(6)
    return Simulated([ami_interval(cluster_R, row_R, group_R, seed) for cluster_R in cluster_KR], truth)


def few_shot(rng: Rng, count: int, seed: int, units: int, draws: int) -> Simulated:
    """Accuracy over draws of training photographs and over test photographs."""
    p_KSN = 0.75 + _within(rng, 0.06, (count, draws, 1)) + _within(rng, 0.2, (count, 1, units))
    right_KSN = rng.random((count, draws, units)) < p_KSN
    ends = []
    for right_SN, each in zip(right_KSN, _resampled(right_KSN, seed), strict=True):
        estimate = each.mean(np.ones(draws))
        ends.append(widened(estimate.value, estimate.ci95, right_SN.mean(axis=1)))
    return Simulated(ends, 0.75)


def crossed(rng: Rng, count: int, seed: int, units: int, pairs: float) -> Simulated:
    """Accuracy on styles of generators that a probe has not seen."""
    return Simulated([each.ci95(0.0, 1.0) for each in _crossed(rng, count, seed, units, pairs)], 0.6)


def contrasts(rng: Rng, count: int, seed: int, units: int) -> Simulated:
    """Differences of three equal networks on such styles."""
    networks = [_crossed(rng, count, seed, units, 0.1) for _ in range(3)]
    rows = [
        [contrast("", "", a, b) for a, b in combinations(networks_of_study, 2)]
        for networks_of_study in zip(*networks, strict=True)
    ]
    false = [any(_below(p) for p in holm_corrected([row["p"] for row in each])) for each in rows]
    return Simulated([_ends(each[0]["difference"]) for each in rows], 0.0, false=false)


def detected(rng: Rng, count: int, seed: int, units: int, shift: float, measure: str) -> Simulated:
    """Detection of attacked photographs by a score."""
    original_KN, own_KN = rng.normal(size=(2, count, units))
    attacked_KN = 0.6 * original_KN + 0.8 * own_KN + shift
    truth = norm.cdf(shift / math.sqrt(2)) if measure == "auroc" else norm.sf(norm.isf(FALSE_POSITIVES) - shift)
    every = np.ones(units, bool), np.arange(units)
    found = [detection(*each, *every, seed=seed) for each in zip(attacked_KN, original_KN, strict=True)]
    return Simulated([each and each[measure].ci95 for each in found], float(truth))


def moved(rng: Rng, count: int, seed: int, units: int, measure: str) -> Simulated:
    """How embeddings move; the truth is that of 200,000 photographs."""
    if measure == "equivariance":
        found = [geometry.equivariance(*_moved(rng, units), np.arange(units), seed)[1] for _ in range(count)]
        return Simulated(found, _equivariance_at_most())
    return Simulated(
        [bootstrap_mean(_sensitivity(*_moved(rng, units)), np.arange(units), seed) for _ in range(count)],
        _sensitivity_at_most(),
    )


def halfway(rng: Rng, count: int, seed: int, units: int) -> Simulated:
    """Severity at which accuracy is halfway from chance to its maximum."""
    p_T = np.array([0.15, 0.35, 0.6, 0.8, 0.9])
    right_KTN = rng.random((count, 5, units)) < p_T[:, None] + _within(rng, 0.1, (count, 1, units))
    names = [f"blur@{severity}" for severity in range(1, 6)]
    curves = [by_severity(names, each, 0.1)["blur"] for each in _resampled(right_KTN, seed)]
    return Simulated([_ends(each["halfway"]) for each in curves], 2.6)


def similarity(rng: Rng, count: int, seed: int, units: int, measure: str) -> Simulated:
    """Similarity of two backbones: normal numbers, of which each pair has the correlation 0.6."""
    keys = tuple(f"{n:04d}" for n in range(units))
    ends = []
    for _ in range(count):
        x_ND, e_ND = rng.normal(size=(2, units, 8))
        tables = [
            EmbeddingTable(
                *(name, values[None].astype(np.float32), ("identity",), ("identity",), ("train",), keys),
                *(np.full(units, -1), (), np.full(units, TEST, np.int8), np.ones((1, units), bool)),
            )
            for name, values in (("a", x_ND), ("b", 0.6 * x_ND + 0.8 * e_ND))
        ]
        found = similarity_of(tables, AnalysisConfig(seed=seed), quiet=True)["pairs"]["a"]["b"]
        ends.append(_ends(found[measure]))
    return Simulated(ends, 0.36)


KINDS: dict[str, Callable[..., Simulated]] = {
    each.__name__: each
    for each in (
        *(proportion, one_way, skewed, two_way, gap, paired, compared, grouped, neighbours, equivalence, holm),
        *(claim_pairs, claim_moves, correlation, robustness, ami, few_shot, crossed, contrasts, detected, moved),
        *(halfway, similarity, nested, predicted),
    )
}


def _within(rng: Rng, half: float, shape: tuple[int, ...]) -> F64:
    return rng.uniform(-half, half, shape)


def _difficulty(rng: Rng, mean: float, shape: tuple[int, ...]) -> F64:
    """Probability that a photograph is right: the nearer the mean is to 100 %, the more are always right."""
    return rng.beta(2 * mean, 2 * (1 - mean), shape)


def _pair(rng: Rng, shape: tuple[int, ...], first: float, second: float) -> tuple[F64, F64]:
    """Scores of two backbones that are both right, or one of them alone."""
    drawn = rng.random(shape)
    return np.where(drawn >= first + second, 1.0, drawn < first), np.where(drawn >= first, 1.0, 0.0)


def _resampled(
    score_KTN: Scores, seed: int, group_N: NDArray[np.int64] | None = None, *, bounds: Bounds | None = ACCURACY
) -> list[Resampled]:
    """Studies with the same seed and number of photographs have the same resamples, so that one call does for all."""
    count = score_KTN.shape[1]
    rows = score_KTN.reshape(-1, score_KTN.shape[2]).astype(np.float32)
    found = resample(rows, BOOTSTRAP, seed, group_N, bounds=bounds)
    return [found.part(slice(start, start + count)) for start in range(0, len(rows), count)]


def _outcome(right_KTN: Scores, seed: int, task: str, first: int = 0, training_KST: F64 | None = None) -> ProbeOutcome:
    """Probe results of a backbone, in which each study is a head."""
    transformations, photographs = right_KTN.shape[1:]
    names = ("identity", *(f"t{t}" for t in range(1, transformations)))
    return ProbeOutcome(
        {},
        {f"{task}/{k}": right_TN.astype(np.float32) for k, right_TN in enumerate(right_KTN)},
        tuple(str(first + n) for n in range(photographs)),
        *(names, ("other",) * transformations, ("train",) * transformations, BOOTSTRAP, seed),
        {} if training_KST is None else {f"{task}/{k}": each.astype(np.float32) for k, each in enumerate(training_KST)},
    )


def _compared(outcomes: dict[str, ProbeOutcome], task: str, count: int) -> list[list[dict[str, Any]]]:
    """Comparisons of each study."""
    found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for row in compare_outcomes(outcomes):
        if row["task"] == task:
            found[int(row["head"])].append(row)
    return found


def _equal(
    rng: Rng, count: int, seed: int, task: str, transformations: int, photographs: int, backbones: int, training: float
) -> dict[str, ProbeOutcome]:
    """Equal backbones; in `rotation` each has its own transformations that suit it."""
    of_t = 0.0 if task == "transformation" else 0.2
    p_N = 0.6 + _within(rng, 0.1, (count, 1, photographs))
    outcomes = {}
    for b in range(backbones):
        trained_K6 = rng.normal(0, training, (count, 6, 1)) if training else np.zeros((count, 6, 1))
        p_KTN = p_N + _within(rng, of_t, (count, transformations, 1)) + trained_K6[:, :1]
        right_KTN = rng.random((count, transformations, photographs)) < p_KTN
        by_resample = 0.6 + np.repeat(trained_K6[:, 1:], transformations, axis=2) if training else None
        outcomes[str(b)] = _outcome(right_KTN, seed, task, 0, by_resample)
    return outcomes


def _ends(entry: dict[str, Any] | None) -> list[float] | None:
    """The interval of an estimate."""
    return Estimate(**entry).interval if entry else None


def _below(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _claim(identity: str, transformations: int, networks: dict[str, Any], comparisons: list[dict[str, Any]]) -> bool:
    """Whether a claim is decided."""
    document = {
        **{"schema": SCHEMA, "name": "simulated", "images": 100, "splits": {"train": 0, "val": 0, "test": 100}},
        "transformations": [{"name": f"t{t}", "kind": "other", "role": "train"} for t in range(transformations)],
        "backbones": {
            name: {"dim": 8, "control": False, "spec": {"objective": kind}, **found}
            for name, (kind, found) in networks.items()
        },
        "comparisons": comparisons,
    }
    status = next(each.status for each in claims(validate_results(document)) if each.id == identity)
    if status == NOT_TESTABLE:
        raise ValueError(f"{identity} cannot be tested on the simulated results")
    return status != UNDECIDED


def _crossed(rng: Rng, count: int, seed: int, units: int, pairs: float) -> list[Crossed]:
    """Scores by pair of generators of a network."""
    seen_KN = 0.6 + _within(rng, 0.3, (count, 1, 100))
    mean = [each.one(0) for each in _resampled(seen_KN, seed)]
    own_K1, trained_KS = rng.normal(0, 0.02, (count, 1)), rng.normal(0, 0.02, (count, 5))
    score_KGG = rng.normal(0, 0.1, (count, units, 1)) + rng.normal(0, 0.15, (count, 1, units))
    score_KGG += rng.normal(0, pairs, (count, units, units)) + own_K1[:, :, None]
    score_KGG += np.array([each.value for each in mean])[:, None, None]
    return [Crossed(*each) for each in zip(score_KGG, mean, 0.6 + trained_KS, strict=True)]


def _moved(rng: Rng, images: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    identity_ND, noise_ND = rng.normal(size=(2, images, 16)).astype(np.float32)
    return identity_ND, 0.8 * identity_ND + 0.5 * noise_ND + np.float32(0.3)


def _sensitivity(identity_ND: NDArray[np.float32], variant_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return geometry.sensitivity(identity_ND, variant_ND, identity_ND.mean(axis=0))


@lru_cache
def _sensitivity_at_most() -> float:
    return float(_sensitivity(*_moved(np.random.default_rng(0), 200_000)).mean(dtype=np.float64))


@lru_cache
def _equivariance_at_most() -> float:
    """Length of the mean unit displacement."""
    identity_ND, variant_ND = _moved(np.random.default_rng(0), 200_000)
    step_ND = (variant_ND - identity_ND).astype(np.float64)
    return float(np.linalg.norm((step_ND / np.linalg.norm(step_ND, axis=1, keepdims=True)).mean(axis=0)))


def _student(x_KN: Scores) -> F64:
    count = x_KN.shape[1]
    half_K = stdtrit(count - 1, 0.975) * x_KN.std(axis=1, ddof=1) / math.sqrt(count)
    return x_KN.mean(axis=1)[:, None] + half_K[:, None] * np.array([-1.0, 1.0])


def _bonett_price(d_KN: F64) -> F64:
    """Source: Bonett and Price, Statistics in Medicine 31, 2012."""
    total = d_KN.shape[1] + 2
    a_K, b_K = ((d_KN == sign).sum(axis=1) + 1 for sign in (1, -1))
    half_K = norm.isf(0.025) * np.sqrt(((a_K + b_K) / total - ((a_K - b_K) / total) ** 2) / total)
    return ((a_K - b_K) / total)[:, None] + half_K[:, None] * np.array([-1.0, 1.0])


@lru_cache
def _binomial(count: int, method: str) -> F64:
    """Intervals for 0 to ``count`` successes."""
    return np.array([binomtest(k, count).proportion_ci(method=method) for k in range(count + 1)])
