"""Do half widths that are forecast before a study fall into their range?

    python -m benchmarks.forecast [--out benchmarks/results/forecast.json]

Standard deviations of differences between networks, by transformation and by photograph, are read off the intervals of
the kept studies: `engine/estimate/forecast.py` has their quantiles. Each kept study is then forecast from the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.harness import RESULTS, document, parser, write
from benchmarks.study_table import kept_study
from substyle.engine.estimate.forecast import NORMAL, Deviations, OverGenerators

NAME = "forecast"
QUESTION = "do half widths that are forecast before a study fall into their range?"
FEWEST = 5  # transformations of a study; with fewer a deviation is not an estimate
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Width:
    """Half the interval of a difference of two networks in a kept study.

    Attributes:
        both: over photographs and transformations.
        photographs: over photographs alone.
    """

    study: str
    transformations: int
    test: int
    both: float
    photographs: float

    @property
    def deviations(self) -> tuple[float, float]:
        """Standard deviations, of one transformation and of one photograph."""
        over = math.sqrt(max(self.both**2 - self.photographs**2, 0.0)) / stdtrit(self.transformations - 1, 0.975)
        return over * math.sqrt(self.transformations), self.photographs / NORMAL * math.sqrt(self.test)


def kept() -> dict[str, dict[str, Any]]:
    names = (path.stem.removeprefix("study-") for path in RESULTS.glob("study-*.json"))
    return {name: kept_study(name) for name in names}


def widths(studies: Mapping[str, Mapping[str, Any]], head: str) -> Iterator[Width]:
    """Half widths of the differences of networks in transformation accuracy."""
    for name, study in sorted(studies.items()):
        transformations, test = study["variants"] // study["images"], study["splits"]["test"]
        for row in study["comparisons"] if transformations >= FEWEST else ():
            controls = any(study["backbones"][each]["control"] for each in (row["a"], row["b"]))
            ends = [row["difference"].get(end) for end in ("low", "high", "two_way")]
            if (row["task"], row["head"]) == ("transformation", head) and not controls and None not in ends:
                low, high, two_way = ends
                both, photographs = (two_way[1] - two_way[0]) / 2, (high - low) / 2
                yield Width(name, transformations, test, both, photographs)


def deviations(found: Iterable[Width]) -> Deviations:
    """Quantiles over pairs, each study with the same weight."""
    return Deviations(*_quantiles([(each.study, each.deviations) for each in found]))


def over_generators(studies: Mapping[str, Mapping[str, Any]]) -> OverGenerators:
    """Quantiles of standard deviations over generators and over photographs."""
    rows = []
    for name, study in sorted(studies.items()):
        for row in (study.get("generators") or {}).get("contrasts") or []:
            errors = row["difference"]
            generators = len(study["backbones"][row["a"]]["generators"]["generators"])
            others = math.hypot(errors["se_photographs"], errors["se_training"])
            photographs = others * math.sqrt(study["splits"]["test"])
            rows.append((name, (errors["se_generators"] * math.sqrt(generators), photographs)))
    return OverGenerators(*_quantiles(rows))


def _quantiles(rows: list[tuple[str, tuple[float, float]]]) -> tuple[tuple[float, float, float], ...]:
    studies = [study for study, _ in rows]
    weights = [1 / studies.count(study) for study in studies]
    values = np.array([each for _, each in rows])
    found = [np.quantile(column, QUANTILES, weights=weights, method="inverted_cdf") for column in values.T]
    return tuple((float(a), float(b), float(c)) for a, b, c in found)


def checked(studies: Mapping[str, Mapping[str, Any]], head: str) -> list[dict[str, Any]]:
    """Of each study, how many half widths fall into the range that the others give."""
    every, rows = list(widths(studies, head)), []
    for name in dict.fromkeys(each.study for each in every):
        own, others = ([each for each in every if (each.study == name) is same] for same in (True, False))
        low, median, high = deviations(others).half(own[0].transformations, own[0].test)
        inside = sum(low <= each.both <= high for each in own)
        halves = [each.both for each in own]
        rows.append({
            "study": name, "transformations": own[0].transformations, "test": own[0].test,
            "forecast": [low, median, high], "median": float(np.median(halves)), "pairs": len(own), "inside": inside,
        })  # fmt: skip
    return rows


def main() -> None:
    out = parser(NAME, __doc__).parse_args().out
    studies, heads = kept(), {"style": "linear", "heads": "mlp-linear"}
    found = {name: asdict(deviations(widths(studies, head))) for name, head in heads.items()}
    outcomes = {name: checked(studies, head) for name, head in heads.items()}
    for name, rows in outcomes.items():
        for row in rows:
            low, median, high = (100 * each for each in row["forecast"])
            print(
                f"{name:6} {row['study']:12} {row['transformations']:3} transformations, {row['test']:4} test: "
                f"forecast {median:.1f} ({low:.1f} to {high:.1f}), came {100 * row['median']:.1f}; "
                f"{row['inside']} of {row['pairs']} inside"
            )
        print(f"{name}: {sum(r['inside'] for r in rows)} of {sum(r['pairs'] for r in rows)} inside their range")
    found["generators"] = asdict(over_generators(studies))
    write(out, document(NAME, QUESTION, deviations=found, checked=outcomes))


if __name__ == "__main__":
    main()
