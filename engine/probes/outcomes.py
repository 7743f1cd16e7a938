"""Probe results of a backbone, and paired comparisons between backbones and heads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.leave_one_out import STYLE
from substyle.engine.probes.resampling import (
    DIFFERENCE,
    BootstrapResult,
    Resampled,
    StudentsT,
    by_class,
    resample,
    uniform_over,
)
from substyle.engine.probes.single_task import kind_weights
from substyle.engine.probes.tasks import F64
from substyle.engine.store.files import read_arrays, write_arrays, write_durably
from substyle.engine.store.layout import ResampleBy
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.words import of_today
from substyle.errors import SubstyleError
from substyle.pipelines import limits
from substyle.pipelines.transforms.names import family

_RESULTS, _SCORES = "probes.json", "scores.npz"
_BY_RESAMPLE = "by_resample:"  # prefix of these arrays in the scores file


@dataclass(frozen=True)
class ProbeOutcome:
    """Probe results of one backbone.

    Attributes:
        results: JSON entries ``transformation``, ``kind``, ... of the backbone in results.json.
        scores: (T, N) float32 over test images, by ``task/head`` (also ``multitask/class``, ...):
            fraction of seeds that are right, NaN if not scored.
        keys: keys of the N test images.
        transformations, kind, roles: properties of the T transformations.
        bootstrap, seed: number of resamples in comparisons, and their seed.
        by_resample: (S, T) float32 by name of a score: accuracies of the S probes trained on resampled training images;
            may be missing.
        group_N: bootstrap groups of the test images; None resamples images.
        resample_by: what these groups are.
    """

    results: dict[str, Any]
    scores: dict[str, NDArray[np.float32]]
    keys: tuple[str, ...]
    transformations: tuple[str, ...]
    kind: tuple[str, ...]
    roles: tuple[str, ...]
    bootstrap: int = 2000
    seed: int = 0
    by_resample: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    group_N: tuple[int, ...] | None = None
    resample_by: ResampleBy = "photograph"

    def save(self, folder: Path) -> None:
        """Write ``probes.json`` and ``scores.npz`` to a folder, each atomically, the JSON last."""
        folder.mkdir(parents=True, exist_ok=True)
        by_resample = {_BY_RESAMPLE + name: score_ST for name, score_ST in self.by_resample.items()}
        write_arrays(folder / _SCORES, **self.scores, **by_resample)
        document = {name: value for name, value in vars(self).items() if name not in ("scores", "by_resample")}
        write_durably(folder / _RESULTS, json.dumps(document, allow_nan=False).encode())

    @classmethod
    def load(cls, folder: Path) -> ProbeOutcome:
        """Load results written by :meth:`save`. Raises SubstyleError if they are missing or damaged."""
        try:
            document = json.loads(limits.read_text(folder / _RESULTS))
            arrays = {name: np.asarray(a, np.float32) for name, a in read_arrays(folder / _SCORES).items()}
            group_N = document.get("group_N")
            outcome = cls(
                {of_today(task): result for task, result in document["results"].items()},
                {of_today(name): array for name, array in arrays.items() if not name.startswith(_BY_RESAMPLE)},
                tuple(map(str, document["keys"])),
                tuple(map(str, document["transformations"])),
                tuple(map(str, document["kind"] if "kind" in document else document["coarse"])),
                tuple(map(str, document["roles"])),
                int(document["bootstrap"]),
                int(document["seed"]),
                {
                    of_today(name.removeprefix(_BY_RESAMPLE)): array
                    for name, array in arrays.items()
                    if name.startswith(_BY_RESAMPLE)
                },
                None if group_N is None else tuple(int(group) for group in group_N),
                document["resample_by"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, *limits.BAD_ARCHIVE) as error:
            raise SubstyleError(f"{folder}: cannot read probe results: {error}") from error
        shape = (len(outcome.transformations), len(outcome.keys))
        # somebody else may have made them
        good = 0 < outcome.bootstrap <= 10**6 and outcome.seed >= 0 and "identity" in outcome.transformations
        good = good and len(outcome.kind) == len(outcome.roles) == shape[0]
        good = good and all(score.shape == shape and name.count("/") == 1 for name, score in outcome.scores.items())
        good = good and all(s.ndim == 2 and s.shape[1] == shape[0] for s in outcome.by_resample.values())
        if not good or (outcome.group_N is not None and len(outcome.group_N) != shape[1]):
            raise SubstyleError(f"{folder}: invalid probe results, or shapes of scores that do not match the keys")
        return outcome


Row = dict[str, Any]
# metrics that generalise to unseen transformations: their interval is over images and transformations
GENERAL = frozenset(
    {("kind", "held_out")} | {(f"{e}rotation", m) for e in ("", "equal_") for m in ("accuracy", "balanced", "styles")}
)


def compare_outcomes(outcomes: Mapping[str, ProbeOutcome]) -> list[Row]:
    """Create ``comparisons`` of results.json: differences a - b for every pair of backbones, task, metric and head.

    Also compares the MLP of each backbone with its linear head of transformations, as head ``mlp-linear`` with
    a = b. Only common images and transformations are compared; pairs without any are left out.

    Returns:
        rows of ``task``, ``metric`` (accuracy of transformation, equal_transformation, rotation and
        equal_rotation; styles and balanced of both rotations; held_out or seen of kind; original or transformed of
        class; transformation or class of multitask), ``head``, ``a``, ``b`` and

        - ``difference``, an `Estimate`: its interval is over images, of metrics in `GENERAL` also over transformations,
          and missing for these over fewer than two. ``se`` is over the same, plus over probes trained on resampled
          training images if both have them; ``ci90``: difference ± the quantile of Student's t × se ×
          `BootstrapResult.at_margin`;
        - ``p``: two-sided, by Student's t, see `StudentsT`;
          ``p_holm``: after Holm's correction over all rows of the task, metric and head. Null without se.
    """
    rows: list[Row] = []
    for a, b in combinations(outcomes.items(), 2):
        rows += differences(a, b)
    for name, outcome in outcomes.items():
        rows += compare_heads(name, outcome, [("transformation/mlp", "transformation/linear")])
    return corrected(rows)


def corrected(rows: list[Row]) -> list[Row]:
    """Add ``p_holm``, after Holm's correction over all rows of a task, metric and head. Returns the rows."""
    together: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        together.setdefault((row["task"], row["metric"], row["head"]), []).append(row)
    for tests in together.values():
        for row, p in zip(tests, holm([row["p"] for row in tests]), strict=True):
            row["p_holm"] = p
    return rows


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Apply Holm's correction to p values; None is kept and not counted.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, (value, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * value))
        adjusted[i] = highest
    return adjusted


def metrics(of: ProbeOutcome | EmbeddingTable, task: str, head: str) -> dict[str, F64]:
    """Weights of transformations in the metrics of a probe, by name. Shape: (T,) each."""
    count = len(of.transformations)
    every = uniform_over(range(count), count)
    base = uniform_over([of.transformations.index("identity")], count)
    if task == "kind":
        weights = kind_weights(of.transformations, of.kind, of.roles)
        held_out = {} if weights.held_out_T is None else {"held_out": weights.held_out_T}
        return held_out | {"seen": weights.seen_T}
    if task in ("rotation", "equal_rotation"):
        styles = uniform_over([t for t, kind in enumerate(of.kind) if kind == STYLE], count)
        found = {"accuracy": every, "balanced": by_class(range(count), of.kind)}
        return found | ({"styles": styles} if styles.any() else {})
    if task == "class":
        return {"original": base, "transformed": every - base}
    if task == "multitask":
        return {head: base if head == "class" else every}
    return {"accuracy": every}


def differences(a: tuple[str, ProbeOutcome], b: tuple[str, ProbeOutcome]) -> list[Row]:
    """Rows of `compare_outcomes` for two backbones, each with its name; without ``p_holm``."""
    names = [name for name in a[1].scores if name in b[1].scores and "/twin-" not in name]
    return _differences(a, b, [(name, name) for name in names])


def compare_heads(name: str, outcome: ProbeOutcome, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Rows of `compare_outcomes` for pairs of scores of one backbone, as far as it has both; without ``p_holm``."""
    both = [pair for pair in pairs if set(pair) <= outcome.scores.keys()]
    rows = _differences((name, outcome), (name, outcome), both)
    other = {x.partition("/")[2]: y.partition("/")[2] for x, y in both}
    return [row | {"head": f"{row['head']}-{other[row['head']]}"} for row in rows]


@dataclass(frozen=True)
class _Compared:
    """A score of two backbones on the T transformations and N images that both have."""

    name: str
    together: ProbeOutcome  # a, with the common transformations
    own: Resampled  # of a - b
    training_ST: F64 | None
    a_TN: NDArray[np.float32]  # NaN unless both have the row
    b_TN: NDArray[np.float32]


def _compared(a: ProbeOutcome, b: ProbeOutcome, names: Sequence[tuple[str, str]]) -> Iterator[_Compared]:
    """Pairs of score names of a and b; nothing without common images and identity."""
    place_b = {key: n for n, key in enumerate(b.keys)}
    common = [(n, place_b[key]) for n, key in enumerate(a.keys) if key in place_b]
    uses_a, uses_b = ([*zip(o.transformations, o.kind, o.roles, strict=True)] for o in (a, b))
    shared = [t for t, use in enumerate(uses_a) if use in uses_b]
    together = replace(
        a,
        transformations=tuple(uses_a[t][0] for t in shared),
        kind=tuple(uses_a[t][1] for t in shared),
        roles=tuple(uses_a[t][2] for t in shared),
    )
    if not common or "identity" not in together.transformations or not names:
        return
    n_a, n_b = np.array(common).T
    t_b = [uses_b.index(uses_a[t]) for t in shared]
    # NaN unless both have the row, so that the difference of means equals the mean of differences
    pairs = [(a.scores[x][np.ix_(shared, n_a)], b.scores[y][np.ix_(t_b, n_b)]) for x, y in names]
    groups = None if a.group_N is None else np.array(a.group_N, np.int64)[n_a]
    families = [family(a.transformations[t]) for t in shared] * len(names)
    resampled = resample(
        *(np.concatenate([x - y for x, y in pairs]), a.bootstrap, a.seed, groups),
        bounds=DIFFERENCE,
        families=families,
        unit=a.resample_by,
    )
    for i, ((x, y), (a_TN, b_TN)) in enumerate(zip(names, pairs, strict=True)):
        own = resampled.part(slice(i * len(shared), (i + 1) * len(shared)))
        training_ST = _training(a.by_resample.get(x), b.by_resample.get(y), shared, t_b)
        yield _Compared(x, together, own, training_ST, a_TN + 0 * b_TN, b_TN + 0 * a_TN)


def _differences(
    side_a: tuple[str, ProbeOutcome], side_b: tuple[str, ProbeOutcome], names: Sequence[tuple[str, str]]
) -> list[Row]:
    """Rows for two backbones; ``names`` are pairs of score names of a and b."""
    (name_a, a), (name_b, b) = side_a, side_b
    rows = []
    for found in _compared(a, b, names):
        task, head = found.name.split("/")
        own, kinds = found.own, found.together.kind
        for metric, weight_T in metrics(found.together, task, head).items():
            weight = weight_T
            if metric == "balanced":  # over the transformations that both held out
                weight = by_class(np.flatnonzero(np.isfinite(own.value_T)).tolist(), kinds)
            over_images = own.mean(weight)
            two_way = own.nested(weight, kinds) if metric == "balanced" else own.two_way(weight)
            if over_images.number is None:
                continue
            row: Row = {"task": task, "metric": metric, "head": "mlp" if task == "multitask" else head}
            known = np.isfinite(own.value_T)
            training = None if found.training_ST is None else found.training_ST[:, known]
            if (task, metric) in GENERAL:
                test, p = _test(two_way, training, weight[known])
                difference = two_way.entry(one_way=over_images.ci95, **test)
            else:
                test, p = _test(over_images, training, weight[known])
                difference = over_images.entry(two_way=two_way.ci95, **test)
            rows.append(row | {"a": name_a, "b": name_b, "difference": difference, "p": p})
    return rows


@dataclass(frozen=True)
class Change:
    """How a score differs between two backbones in one transformation.

    Attributes:
        score: ``transformation/linear`` or ``class/linear``.
        transformation: its name.
        before, after: accuracies on the photographs that both have.
        low, high: 95 % interval of ``after - before``, over photographs, and over trainings if probes were resampled.
        low_all, high_all: the same, so that the intervals of all changes cover together (Bonferroni).
        p, p_holm: two-sided, and after Holm's correction over all changes.
        units: number of photographs, or of groups of these.
        converged: whether both probes have converged.
    """

    score: str
    transformation: str
    before: float
    after: float
    low: float
    high: float
    low_all: float
    high_all: float
    p: float | None
    p_holm: float | None
    units: float
    converged: bool

    @property
    def value(self) -> float:
        """``after - before``."""
        return self.after - self.before


def changes(before: ProbeOutcome, after: ProbeOutcome) -> list[Change]:
    """Paired differences of the first heads of transformations and classes, for each transformation."""
    firsts: dict[str, str] = {}
    for name in after.scores:
        if name in before.scores and (task := name.partition("/")[0]) in ("transformation", "class"):
            firsts.setdefault(task, name)
    found = list(_compared(after, before, [(name, name) for name in firsts.values()]))
    count = sum(int(np.isfinite(each.own.value_T).sum()) for each in found)
    made = []
    for each in found:
        converged = all(_converged(outcome, each.name) for outcome in (before, after))
        made += [_change(each, t, count, converged) for t in np.flatnonzero(np.isfinite(each.own.value_T)).tolist()]
    adjusted = holm([change.p for change in made])
    return [replace(change, p_holm=p) for change, p in zip(made, adjusted, strict=True)]


def _converged(outcome: ProbeOutcome, score: str) -> bool:
    task, head = score.split("/")
    return ((outcome.results.get(task) or {}).get(head) or {}).get("converged") is not False


def _change(found: _Compared, t: int, count: int, converged: bool) -> Change:
    """The change in transformation t; its second interval is one of ``count`` that cover together."""
    known = np.isfinite(found.own.value_T)
    weight_T = uniform_over([t], len(known))
    own = found.own.mean(weight_T)
    training = None if found.training_ST is None else found.training_ST[:, known]
    t_of, _ = _students(own, training, weight_T[known])
    # the wider of the bootstrap's interval and Student's, which knows trainings
    drawn = [abs(end - own.value) for end in own.ci95 or (-1.0, 1.0)]
    half, wider = (0.0, 0.0) if t_of is None else (t_of.half_width(95.0), t_of.half_width(100 - 5 / count))
    (below, above), (far_below, far_above) = ([max(end, width) for end in drawn] for width in (half, wider))
    return Change(
        score=found.name,
        transformation=found.together.transformations[t],
        before=float(np.nanmean(found.b_TN[t])),
        after=float(np.nanmean(found.a_TN[t])),
        low=max(own.value - below, -1.0),
        high=min(own.value + above, 1.0),
        low_all=max(own.value - far_below, -1.0),
        high_all=min(own.value + far_above, 1.0),
        p=None if t_of is None else t_of.p(own.value),
        p_holm=None,
        units=own.units,
        converged=converged,
    )


def _training(
    a_ST: NDArray[np.float32] | None, b_ST: NDArray[np.float32] | None, t_a: Sequence[int], t_b: Sequence[int]
) -> F64 | None:
    """Differences of probes trained on the same resamples; None with fewer than two."""
    if a_ST is None or b_ST is None or min(len(a_ST), len(b_ST)) < 2:
        return None
    count = min(len(a_ST), len(b_ST))
    return a_ST[:count, t_a].astype(np.float64) - b_ST[:count, t_b]


def _students(error: BootstrapResult, training_ST: F64 | None, weight_T: F64) -> tuple[StudentsT | None, float | None]:
    """Student's t of a difference, over images and, if known, trainings; and the standard error of trainings."""
    se, training = error.se, None
    if training_ST is not None:
        used = np.isfinite(training_ST).all(axis=0) & (weight_T > 0)
        if used.any():
            training = float(np.average(training_ST[:, used], axis=1, weights=weight_T[used]).std(ddof=1))
    if se is None:
        return None, training
    of_training = () if training_ST is None or not training else ((training, len(training_ST)),)
    return StudentsT.of((se, error.units), *of_training), training


def _test(error: BootstrapResult, training_ST: F64 | None, weight_T: F64) -> tuple[dict[str, Any], float | None]:
    """Standard errors and 90 % interval of a difference, fields of an `Estimate`, and its p value."""
    t, training = _students(error, training_ST, weight_T)
    if t is None:
        return {"se_training": training}, None
    half = error.at_margin * t.half_width(90.0)
    ci90 = [max(error.value - half, -1.0), min(error.value + half, 1.0)]
    return {"se": t.se, "se_training": training, "ci90": ci90}, t.p(error.value)
