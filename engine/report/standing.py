"""How backbones stand to each other in one score: what is clearly above what, and ranks as intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from substyle.engine.report.cells import show, show_interval
from substyle.engine.report.results import Results, dig, ordered

LEVEL = 0.05  # of tests after Holm's correction
MARGIN = 0.01  # differences within it are called equivalent
# scores that speak for transformations that nobody tried have intervals over photographs and transformations
GENERAL = frozenset({("coarse", "held_out"), ("coarse_rotation", "accuracy"), ("coarse_rotation", "styles")})
_COMPARED = {"coarse_rotation": "rotation"}  # tasks that comparisons name otherwise


def interval_key(scores: object, task: str, key: str) -> str:
    """Where the interval that applies to a score stands: the two-way one where it is needed and there is one."""
    prefix = "" if key == "accuracy" else f"{key}_"
    two_way = f"{prefix}two_way_ci95"
    return two_way if (task, key) in GENERAL and dig(scores, two_way) else f"{prefix}ci95"


@dataclass(frozen=True)
class Score:
    """A backbone's score and the interval that applies to it."""

    name: str
    control: bool
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


@dataclass(frozen=True)
class Standing:
    """Scores of one task, head and metric.

    Attributes:
        scores: of backbones and controls, best first.
        unconverged: backbones whose probe has not converged; they have no score here.
        rows: the comparisons of this task, head and metric, by (a, b).
    """

    scores: tuple[Score, ...]
    unconverged: tuple[str, ...]
    rows: dict[tuple[str, str], dict[str, Any]]

    @property
    def trained(self) -> list[Score]:
        """Scores of backbones that are no controls, best first."""
        return [score for score in self.scores if not score.control]

    @property
    def controls(self) -> list[Score]:
        """Scores of controls, best first."""
        return [score for score in self.scores if score.control]

    def difference(self, a: str, b: str, key: str = "ci95") -> tuple[float, Sequence[float] | None] | None:
        """a minus b and one of its intervals; None where nobody compared the two."""
        if (row := self.rows.get((a, b))) is not None:
            return row["difference"], row.get(key)
        if (row := self.rows.get((b, a))) is not None:
            ends = row.get(key)
            return -row["difference"], None if ends is None else (-ends[1], -ends[0])
        return None

    def clearly_above(self, a: str, b: str) -> bool:
        """Whether a is above b by the corrected test of their difference; False where they were not compared."""
        found = self.difference(a, b, "")
        p = dig(self.rows.get((a, b)) or self.rows.get((b, a)), "p_holm")
        return found is not None and found[0] > 0 and p is not None and p < LEVEL

    def equivalent(self, a: str, b: str) -> bool:
        """Whether the 90 % interval of the difference lies within the margin.

        Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", Journal of
        Pharmacokinetics and Biopharmaceutics 15, 1987.
        """
        found = self.difference(a, b, "ci90")
        return found is not None and found[1] is not None and within_margin(found[1])

    def rank(self, name: str) -> tuple[int, int]:
        """The best and the worst rank that the tests leave open: 1 + those clearly above, n − those clearly below."""
        others = [score.name for score in self.scores if score.name != name]
        above = sum(self.clearly_above(other, name) for other in others)
        return 1 + above, len(self.scores) - sum(self.clearly_above(name, other) for other in others)


def within_margin(low_high: Sequence[float]) -> bool:
    """Whether an interval of a difference lies within ± `MARGIN`."""
    return low_high[0] > -MARGIN and low_high[1] < MARGIN


def standing(results: Results, task: str, head: str, key: str, names: Iterable[str] | None = None) -> Standing:
    """The standing in a score of ``results.backbones[…].<task>.<head>``, of all backbones or of some."""
    found, unconverged = [], []
    for name in ordered(results) if names is None else names:
        scores = dig(results, "backbones", name, task, head)
        value = dig(scores, key)
        if value is not None and dig(scores, "converged") is False:
            unconverged.append(name)
        elif value is not None:
            control = bool(dig(results, "backbones", name, "control"))
            found.append(Score(name, control, value, dig(scores, interval_key(scores, task, key))))
    rows = {
        (row["a"], row["b"]): row
        for row in results.get("comparisons") or []
        if (row["task"], row.get("head"), row.get("metric")) == (_COMPARED.get(task, task), head, key)
    }
    return Standing(tuple(sorted(found, key=lambda score: -score.value)), tuple(unconverged), rows)
