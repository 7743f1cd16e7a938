"""Means over ordered pairs of generators, and their standard errors with generators as a random sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.probes.resampling import BootstrapResult, StudentsT
from substyle.engine.results.model import entry_of
from substyle.engine.store.files import read_arrays, write_arrays
from substyle.errors import SubstyleError
from substyle.pipelines import limits

F64 = NDArray[np.float64]


def known_mean(values: NDArray[np.floating]) -> F64:
    """Mean over the last axis of the numbers that are not NaN; NaN without any."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1, dtype=np.float64)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def mean_over_pairs(score_GG: F64) -> float:
    """Mean off the diagonal: the mean over training generators of the mean over tested ones."""
    return float(known_mean(known_mean(np.where(np.eye(len(score_GG), dtype=bool), np.nan, score_GG))))


def jackknife(score_GG: F64) -> float:
    """Standard error of `mean_over_pairs` over generators, each of which is a row and a column.

    The mean is computed again without each generator in turn, as trained on and as tested. The estimate is exact where
    generators differ, and too large where only pairs do: about twice the variance, four times with three generators.
    NaN for fewer than three generators.

    Source: Efron and Stein, "The jackknife estimate of variance", Annals of Statistics 9(3), 1981; for networks
    Snijders and Borgatti, "Non-parametric standard errors and tests for network statistics", Connections 22(2), 1999.
    """
    count = len(score_GG)
    if count < 3:
        return math.nan
    others = [np.delete(np.arange(count), g) for g in range(count)]
    without_G = np.array([mean_over_pairs(score_GG[np.ix_(rest, rest)]) for rest in others])
    return math.sqrt((count - 1) / count * float(((without_G - without_G.mean()) ** 2).sum()))


@dataclass(frozen=True)
class Crossed:
    """A mean over pairs of generators, or a difference of two, with all that is random about it.

    Attributes:
        score_GG: score by generator trained on (row) and tested (column); the diagonal is not used.
        photographs: the mean over resamples of the test photographs.
        training_S: the mean of probes trained on resampled photographs.
    """

    score_GG: F64
    photographs: BootstrapResult
    training_S: F64

    def __sub__(self, other: Crossed) -> Crossed:
        return Crossed(
            self.score_GG - other.score_GG,
            self.photographs - other.photographs,
            self.training_S - other.training_S,
        )

    def save(self, path: Path) -> None:
        """Write the scores of a backbone (an ``.npz`` file)."""
        write_arrays(path, score_GG=self.score_GG, photographs=self.photographs.array(), training_S=self.training_S)

    @classmethod
    def load(cls, path: Path) -> Crossed:
        """Load the scores of a backbone. Raises SubstyleError if they are damaged."""
        try:
            found = read_arrays(path)
            return cls(found["score_GG"], BootstrapResult.of(found["photographs"]), found["training_S"])
        except (OSError, ValueError, KeyError, *limits.BAD_ARCHIVE) as error:
            raise SubstyleError(f"{path}: cannot read scores: {error}") from error

    @property
    def value(self) -> float:
        """The mean."""
        return mean_over_pairs(self.score_GG)

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors over generators, test photographs and training photographs."""
        of_photographs = self.photographs.se
        return {
            "generators": jackknife(self.score_GG),
            "photographs": math.nan if of_photographs is None else of_photographs,
            "training": float(self.training_S.std(ddof=1)) if len(self.training_S) > 1 else math.nan,
        }

    @property
    def se(self) -> float:
        """Root of the sum of the squares of all standard errors."""
        return math.hypot(*self.errors.values())

    @property
    def _t(self) -> StudentsT:
        units = len(self.score_GG), self.photographs.units, len(self.training_S)
        return StudentsT.of(*zip(self.errors.values(), units, strict=True))

    def ci95(self, low: float, high: float) -> list[float] | None:
        """The 95 % interval within bounds; None without a standard error."""
        if not math.isfinite(self.se):
            return None
        half = self._t.half_width(95.0)
        return [max(self.value - half, low), min(self.value + half, high)]

    @property
    def p(self) -> float | None:
        """Two-sided p value of a difference; None without a standard error."""
        if not math.isfinite(self.se):
            return None
        return self._t.p(self.value)

    def entry(self, low: float) -> dict[str, Any] | None:
        """Entry of results.json, with the interval within [``low``, 1] and all standard errors."""
        found = {"se": self.se, **{f"se_{key}": value for key, value in self.errors.items()}}
        errors = {key: value for key, value in found.items() if math.isfinite(value)}
        return entry_of(self.value, self.ci95(low, 1.0), len(self.score_GG), "generator", **errors)
