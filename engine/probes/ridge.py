"""Ridge regression of numbers from embeddings, at every penalty from one covariance matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.resampling import BootstrapResult
from substyle.engine.store.layout import ResampleBy
from substyle.engine.store.table import EmbeddingTable

F64 = NDArray[np.float64]
PENALTIES = np.logspace(-6, 3, 19)  # in units of the mean eigenvalue of the covariance
_AT_ONCE = 65_536  # rows in memory in float64
_SHOWN = 100  # photographs of the plot
_DRAWS_AT_ONCE = 1 << 22  # multiplicities of groups in memory


@dataclass(frozen=True)
class Response:
    """A number that is predicted from embeddings.

    Attributes:
        period: of an angle; 0 for other numbers. Angles are predicted as points of the unit circle.
    """

    name: str
    unit: str
    period: float

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

    def near(self, value_N: F64, predicted_N: F64) -> F64:
        """Predictions at the turn that is nearest to the true values, which for angles may be negative."""
        if not self.period:
            return predicted_N
        near_N: F64 = predicted_N - self.period * np.round((predicted_N - value_N) / self.period)
        return near_N

    def errors(self, value_N: F64, predicted_N: F64) -> F64:
        """Absolute errors, of angles the shorter way round."""
        error_N: F64 = np.abs(self.near(value_N, predicted_N) - value_N)
        return error_N


Cell = tuple[int, int, NDArray[np.int64]]  # place among the columns, transformation, photographs


def cells_of(table: EmbeddingTable, columns: Sequence[int], rows: NDArray[np.int64]) -> Iterator[Cell]:
    """Variants of photographs in parts of at most `_AT_ONCE`."""
    for i, t in enumerate(columns):
        own = rows[table.distinct_TN[t, rows]]
        for start in range(0, len(own), _AT_ONCE):
            yield i, t, own[start : start + _AT_ONCE]


def regressed(
    table: EmbeddingTable,
    targets: Sequence[Response],
    value_TN: Mapping[str, F64],
    cells: Sequence[Sequence[Cell]],
    *,
    bootstrap: int,
    seed: int,
    resample_by: ResampleBy,
) -> Iterator[tuple[Response, dict[str, Any]]]:
    """Each target with its scores on test photographs, at the penalty that is best on validation photographs.

    Args:
        value_TN: values by target, column and photograph.
        cells: rows of the training, validation and test photographs.
    """
    train, val, test = cells
    ridge = RidgePath.of(table, train, [(each, value_TN[each.name]) for each in targets])
    image_N = np.concatenate([n_B for _, _, n_B in test])
    test_N, place_N = np.unique(image_N, return_inverse=True)
    group_N = table.groups_of(test_N, resample_by)[place_N]
    of_val, of_test = (ridge.predictions(table, each) for each in (val, test))
    for target, at in zip(targets, ridge.places, strict=True):
        true_val, true_test = (
            np.concatenate([value_TN[target.name][i, n_B] for i, _, n_B in each]) for each in (val, test)
        )
        expected = target.points(true_val)
        best = int(np.argmin([((each[:, at] - expected) ** 2).sum() for each in of_val]))
        tested = true_test, of_test[best][:, at], group_N
        scores = scored_on(target, *tested, bootstrap, seed, table.unit_of(resample_by))
        edge = best in (0, len(PENALTIES) - 1)
        yield target, scores | {"penalty": float(PENALTIES[best]), "edge": edge, "images": len(test_N)}


@dataclass(frozen=True)
class RidgePath:
    """Ridge regressions of several numbers, at every penalty, from one covariance matrix.

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
    target: Response,
    value_N: F64,
    point_NP: F64,
    group_N: NDArray[np.int64],
    bootstrap: int,
    seed: int,
    unit: str = "",
) -> dict[str, Any]:
    """R² and mean absolute error on test variants, with bootstrap intervals over groups of photographs."""
    true_NP, predicted_N = target.points(value_N), target.numbers(point_NP)
    error_N = target.errors(value_N, predicted_N)
    # sums that both scores are made of, by group
    per_row = [((point_NP - true_NP) ** 2).sum(axis=1), (true_NP**2).sum(axis=1), error_N, np.ones(len(value_N))]
    row_NS = np.concatenate([np.stack(per_row, axis=1), true_NP], axis=1)
    sums_GS = np.zeros((int(group_N.max()) + 1, row_NS.shape[1]))
    np.add.at(sums_GS, group_N, row_NS)
    groups = len(sums_GS)
    rng = np.random.default_rng([seed, groups, 0x70617261])
    at_once, share_G = max(1, _DRAWS_AT_ONCE // groups), np.full(groups, 1 / groups)
    counts = [min(at_once, bootstrap - start) for start in range(0, bootstrap, at_once)]
    r2_R, error_R = _r2_and_error(
        np.concatenate([rng.multinomial(groups, share_G, size=count).astype(np.float64) @ sums_GS for count in counts])
    )
    (r2,), (error,) = _r2_and_error(sums_GS.sum(axis=0)[None])
    near_N = target.near(value_N, predicted_N)
    shown = np.linspace(0, len(value_N) - 1, min(_SHOWN, len(value_N))).astype(np.int64)
    return {
        "r2": BootstrapResult(float(r2), r2_R, groups, unit=unit).entry(high=1.0),
        "error": BootstrapResult(float(error), error_R, groups, unit=unit).entry(low=0.0),
        "unit": target.unit,
        "period": target.period or None,
        "low": float(value_N.min()),
        "high": float(value_N.max()),
        "points": [
            [round(float(a), 4), round(float(b), 4)] for a, b in zip(value_N[shown], near_N[shown], strict=True)
        ],
    }


def _r2_and_error(sums_RS: F64) -> tuple[F64, F64]:
    squared_R, total_R, error_R, count_R = sums_RS[:, :4].T
    variance_R = total_R - (sums_RS[:, 4:] ** 2).sum(axis=1) / count_R
    with np.errstate(invalid="ignore", divide="ignore"):
        r2_R = np.where(variance_R > 1e-12 * np.abs(total_R), 1 - squared_R / variance_R, np.nan)
    return r2_R, error_R / count_R
