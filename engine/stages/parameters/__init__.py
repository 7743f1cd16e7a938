"""How much of a transformation an embedding knows: regression of the parameters that were drawn for each variant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictInt

from substyle.engine.config import Study
from substyle.engine.embedding.plan import definitions_of
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.probes.evaluate import Estimate
from substyle.engine.probes.tasks import images_of
from substyle.engine.report.data import ComparedScore
from substyle.engine.report.section import Section
from substyle.engine.results.model import BackboneResults, ResultsDocument
from substyle.engine.stages.parameters.section import ByTransformation, scores, sections
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.store.layout import ResampleBy
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.store.tokens import averaged
from substyle.kernels.philox import image_keys
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, suite
from substyle.pipelines.validation import validated

F64 = NDArray[np.float64]
PENALTIES = np.logspace(-6, 3, 19)  # in units of the mean eigenvalue of the covariance
FEWEST = 3  # values of a parameter
_AT_ONCE = 65_536  # rows in memory in float64
_SHOWN = 100  # photographs of the plot
_CODES = {"page", "photo", "kind"}  # parameters that choose among assets or cases, and are no quantities


@validated("parameters")
class ParametersConfig:
    """Regression of the parameters of transformations: how much blur, which angle, which quality."""

    bootstrap: Annotated[StrictInt, Field(ge=100, le=10**6)] = 2000
    """Number of resamples of the test photographs."""
    resample_by: ResampleBy = "photograph"
    """Unit of the bootstrap. Defaults to the study's."""
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    """Seed of resamples. Defaults to the study's."""


class ParametersStage(JsonStage[ParametersConfig]):
    """Predict the parameters of each transformation by ridge regression on the embeddings of its variants.

    Parameters are drawn again from the seed of the store, as they were for the variants. Severities of a transformation
    (``name@1``, …) are rows of one regression. The penalty is selected on the validation photographs.
    """

    name = "parameters"
    config = ParametersConfig
    file = "parameters.json"
    alike = True
    backbone_results = ByTransformation

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Warn of a table that finds nothing."""
        if self.of(study) is None or families(suite(study.suite)):
            return []
        return [f"[parameters] does nothing: no transformation of {study.suite} has a numeric parameter"]

    def units(self, run: Run, config: ParametersConfig) -> Iterable[Unit]:
        """Backbones of stores whose variants were made here: parameters of imported ones are unknown."""
        if run.store.has_manifest() and any(each.kind == "imported" for each in run.store.manifest().sources):
            return []
        return [unit for unit in super().units(run, config) if families(run.tables[unit.name].transformations)]

    def compute(self, run: Run, config: ParametersConfig, unit: Unit, shared: None, folder: Path) -> bool:
        """Write the scores. Raises DifferentError if the definition of a transformation has changed."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        table = averaged(run.tables[unit.name])
        run.store.require_definitions(definitions_of(table.transformations))
        with threadpool_limits(1):  # the same numbers on any number of cores
            self.write(folder, parameters(table, run.store.settings.seed, config))
        return True

    def lines(self, result: JSON) -> Iterator[str]:
        """R² and error of each parameter."""
        for transformation, own in result["by_transformation"].items():
            for parameter, score in own.items():
                known = "–" if score["r2"] is None else f"{score['r2']:.2f}"
                yield f"{transformation}: {parameter}  R² {known}  error {score['error']:.3g} {score['unit']}".rstrip()

    def scores(self, backbone: BackboneResults) -> Iterator[ComparedScore]:
        """Mean R² of all parameters."""
        return scores(backbone)

    def sections(self, results: ResultsDocument) -> Iterator[Section]:
        """Sections of the report."""
        return sections(results)


STAGE = ParametersStage()


@dataclass(frozen=True)
class Response:
    """A parameter that is predicted.

    Attributes:
        period: of an angle; 0 for other numbers. Angles are predicted as points of the unit circle.
    """

    name: str
    unit: str
    period: float

    @staticmethod
    def of(parameter: base.Parameter) -> Response | None:
        """The target of a parameter; None for several numbers, fewer than three values, and choices of assets."""
        if parameter.name in _CODES:
            return None
        if isinstance(parameter, base.Choice):
            number = all(isinstance(value, int | float) for value in parameter.values)
            few = len(set(parameter.values)) < FEWEST and not parameter.severity
            return None if not number or few else Response(parameter.name, parameter.unit, 0.0)
        if parameter.count > 1:
            return None
        turn = 2 * parameter.high if parameter.signed else parameter.high - parameter.low
        whole = parameter.low == 0 or parameter.signed
        angle = parameter.unit.startswith("degree") and turn in (180.0, 360.0)
        phase = turn == 1.0 and (parameter.name == "phase" or parameter.unit == "cell")
        return Response(parameter.name, parameter.unit, float(turn) if whole and (angle or phase) else 0.0)

    def points(self, value_N: F64) -> F64:
        """What is regressed: the numbers, or points of the unit circle. Shape: (N, 1) or (N, 2)."""
        if not self.period:
            return value_N[:, None]
        turn_N = 2 * np.pi * value_N / self.period
        return np.stack([np.cos(turn_N), np.sin(turn_N)], axis=1)

    def numbers(self, point_NP: F64) -> F64:
        """The inverse of `points`, angles from 0 to the period."""
        if not self.period:
            return point_NP[:, 0]
        turns: F64 = np.arctan2(point_NP[:, 1], point_NP[:, 0]) / (2 * np.pi) % 1 * self.period
        return turns

    def errors(self, value_N: F64, predicted_N: F64) -> F64:
        """Absolute errors, of angles the shorter way round."""
        error_N: F64 = np.abs(predicted_N - value_N)
        return np.minimum(error_N % self.period, -error_N % self.period) if self.period else error_N


def families(names: Sequence[str]) -> dict[str, tuple[list[int], list[Response]]]:
    """Indices of the columns of each transformation, of all its severities, and its parameters."""
    load_all()
    columns: dict[str, list[int]] = {}
    for t, name in enumerate(names):
        columns.setdefault(name.partition("@")[0], []).append(t)
    found = {}
    for family, own in columns.items():
        targets = [target for each in base.get(family).parameters if (target := Response.of(each)) is not None]
        if targets:
            found[family] = own, targets
    return found


def parameters(table: EmbeddingTable, seed: int, config: ParametersConfig) -> JSON:
    """Scores of all parameters on the test photographs.

    Variants that equal the original, or show motifs of another split, are left out.

    Returns:
        results of `ByTransformation`.
    """
    key_N = image_keys(seed, list(table.keys))
    splits = images_of(table, np.ones(len(table.keys), np.bool_), config.seed)
    found: dict[str, Any] = {}
    for family, (columns, targets) in families(table.transformations).items():
        drawn = [base.get(table.transformations[t]).values(key_N) for t in columns]
        value_TN = {each.name: np.stack([of[each.name] for of in drawn]).astype(np.float64) for each in targets}
        known = [target for target in targets if len(np.unique(value_TN[target.name])) >= FEWEST]
        cells = [list(_cells(table, columns, rows)) for rows in splits]
        if known and all(cells):
            scores = _regressed(table, known, value_TN, cells, config)
            found[family] = {target.name: score for target, score in scores}
    return {"by_transformation": found, **asdict(config)}


Cell = tuple[int, int, NDArray[np.int64]]  # place among the columns, transformation, photographs


def _cells(table: EmbeddingTable, columns: Sequence[int], rows: NDArray[np.int64]) -> Iterator[Cell]:
    """Variants of photographs in parts of at most `_AT_ONCE`."""
    for i, t in enumerate(columns):
        own = rows[table.distinct_TN[t, rows]]
        for start in range(0, len(own), _AT_ONCE):
            yield i, t, own[start : start + _AT_ONCE]


def _regressed(
    table: EmbeddingTable,
    targets: Sequence[Response],
    value_TN: Mapping[str, F64],
    cells: Sequence[Sequence[Cell]],
    config: ParametersConfig,
) -> Iterator[tuple[Response, JSON]]:
    """Each target with its scores; ``cells`` of the training, validation and test photographs."""
    train, val, test = cells
    ridge = RidgePath.of(table, train, [(each, value_TN[each.name]) for each in targets])
    image_N = np.concatenate([n_B for _, _, n_B in test])
    test_N, place_N = np.unique(image_N, return_inverse=True)
    group_N = table.groups_of(test_N, config.resample_by)[place_N]
    of_val, of_test = (ridge.predictions(table, each) for each in (val, test))
    for target, at in zip(targets, ridge.places, strict=True):
        true_val, true_test = (
            np.concatenate([value_TN[target.name][i, n_B] for i, _, n_B in each]) for each in (val, test)
        )
        expected = target.points(true_val)
        best = int(np.argmin([((each[:, at] - expected) ** 2).sum() for each in of_val]))
        scores = scored_on(target, true_test, of_test[best][:, at], group_N, config)
        edge = best in (0, len(PENALTIES) - 1)
        yield target, scores | {"penalty": float(PENALTIES[best]), "edge": edge, "images": len(test_N)}


@dataclass(frozen=True)
class RidgePath:
    """Ridge regressions of all parameters of a transformation, at every penalty, from one covariance matrix.

    Attributes:
        weight_CDP: coefficients by penalty.
        places: columns of each target among the P that are predicted.
    """

    mean_D: F64
    mean_P: F64
    weight_CDP: F64
    places: list[slice]

    @staticmethod
    def of(table: EmbeddingTable, cells: Sequence[Cell], targets: Sequence[tuple[Response, F64]]) -> RidgePath:
        """Fit all penalties by one eigendecomposition.

        Args:
            cells: training rows.
            targets: parameters, and their values by column and photograph (T, N).
        """
        ends = np.cumsum([0, *(2 if target.period else 1 for target, _ in targets)])
        places = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        count = sum(len(n_B) for _, _, n_B in cells)

        def parts() -> Iterator[tuple[F64, F64]]:
            for i, t, n_B in cells:
                points = [target.points(value_TN[i, n_B]) for target, value_TN in targets]
                yield table.take_finite(t, n_B).astype(np.float64), np.concatenate(points, axis=1)

        if count <= table.width:  # fewer rows than numbers: their singular vectors are smaller
            x_ND, y_NP = (np.concatenate(each) for each in zip(*parts(), strict=True))
            mean_D, mean_P = x_ND.mean(axis=0), y_NP.mean(axis=0)
            _, singular_K, vector_KD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
            value_K, vector_DK, cross_DP = singular_K**2, vector_KD.T, (x_ND - mean_D).T @ (y_NP - mean_P)
        else:  # one pass over the embeddings, from their first row, which is nearer to the mean than 0
            dim, shift_D = table.width, table.take_finite(cells[0][1], cells[0][2][:1])[0].astype(np.float64)
            total_D, total_P = np.zeros(dim), np.zeros(ends[-1])
            gram_DD, cross_DP = np.zeros((dim, dim)), np.zeros((dim, ends[-1]))
            for row_ND, y_NP in parts():
                x_ND = row_ND - shift_D
                total_D, total_P = total_D + x_ND.sum(axis=0), total_P + y_NP.sum(axis=0)
                gram_DD += x_ND.T @ x_ND
                cross_DP += x_ND.T @ y_NP
            mean_D, mean_P = total_D / count, total_P / count
            value_K, vector_DK = np.linalg.eigh(gram_DD - count * np.outer(mean_D, mean_D))
            cross_DP -= count * np.outer(mean_D, mean_P)
            mean_D += shift_D
        along_KP, unit = vector_DK.T @ cross_DP, max(float(value_K.sum()) / len(mean_D), 1e-30)
        weights = [vector_DK @ (along_KP / (np.maximum(value_K, 0.0) + C * unit)[:, None]) for C in PENALTIES]
        return RidgePath(mean_D, mean_P, np.stack(weights), places)

    def predictions(self, table: EmbeddingTable, cells: Sequence[Cell]) -> list[F64]:
        """Predictions at each penalty. Shapes: (N, P), in the order of the cells."""
        parts: list[list[F64]] = [[] for _ in PENALTIES]
        for _, t, n_B in cells:
            x_ND = table.take_finite(t, n_B).astype(np.float64) - self.mean_D
            for part, weight_DP in zip(parts, self.weight_CDP, strict=True):
                part.append(x_ND @ weight_DP + self.mean_P)
        return [np.concatenate(part) for part in parts]


def scored_on(
    target: Response, value_N: F64, point_NP: F64, group_N: NDArray[np.int64], config: ParametersConfig
) -> JSON:
    """R² and mean absolute error on test variants, with bootstrap intervals over groups of photographs."""
    true_NP, predicted_N = target.points(value_N), target.numbers(point_NP)
    error_N = target.errors(value_N, predicted_N)
    # sums that both scores are made of, by group
    per_row = [((point_NP - true_NP) ** 2).sum(axis=1), (true_NP**2).sum(axis=1), error_N, np.ones(len(value_N))]
    row_NS = np.concatenate([np.stack(per_row, axis=1), true_NP], axis=1)
    sums_GS = np.zeros((int(group_N.max()) + 1, row_NS.shape[1]))
    np.add.at(sums_GS, group_N, row_NS)
    groups = len(sums_GS)
    rng = np.random.default_rng([config.seed, groups, 0x70617261])
    times_RG = rng.multinomial(groups, np.full(groups, 1 / groups), size=config.bootstrap).astype(np.float64)
    r2_R, error_R = _r2_and_error(times_RG @ sums_GS)
    (r2,), (error,) = _r2_and_error(sums_GS.sum(axis=0)[None])
    shown = np.linspace(0, len(value_N) - 1, min(_SHOWN, len(value_N))).astype(np.int64)
    return {
        "r2": Estimate(float(r2), r2_R, groups).number,
        "r2_ci95": Estimate(float(r2), r2_R, groups).within(-math.inf, 1.0),
        "error": float(error),
        "error_ci95": Estimate(float(error), error_R, groups).within(0.0, math.inf),
        "unit": target.unit,
        "period": target.period or None,
        "low": float(value_N.min()),
        "high": float(value_N.max()),
        "points": [
            [round(float(a), 4), round(float(b), 4)] for a, b in zip(value_N[shown], predicted_N[shown], strict=True)
        ],
    }


def _r2_and_error(sums_RS: F64) -> tuple[F64, F64]:
    squared_R, total_R, error_R, count_R = sums_RS[:, :4].T
    variance_R = total_R - (sums_RS[:, 4:] ** 2).sum(axis=1) / count_R
    with np.errstate(invalid="ignore", divide="ignore"):
        r2_R = np.where(variance_R > 1e-12 * np.abs(total_R), 1 - squared_R / variance_R, np.nan)
    return r2_R, error_R / count_R
