"""What one network reads better or worse than another, for each transformation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from substyle.engine.probes.outcomes import Change, ProbeOutcome, changes
from substyle.engine.report.data import Column, Table, labels_of
from substyle.engine.report.tables import text_table
from substyle.engine.results.model import ResultsDocument
from substyle.errors import ConfigError

_ANY = "any"
_WHAT = {"class": "class under", "transformation": "reading of"}
_CONDITION = re.compile(r"(class under|reading of) ([\w@.:-]+) *([<>]) *([+-−]?\d+(?:\.\d+)?)")
_ALLOWED = '"class under NAME < POINTS" or "reading of NAME < POINTS"; NAME of a transformation or any; or >'


@dataclass(frozen=True)
class Condition:
    """A change that ends a command with 1, such as ``class under jpeg < -2``.

    Attributes:
        text: as given.
        task: ``class`` or ``transformation``.
        name: a transformation, or ``any``.
        below: whether the change must be below the limit; else above.
        limit: a fraction.
    """

    text: str
    task: str
    name: str
    below: bool
    limit: float

    @staticmethod
    def of(text: str) -> Condition:
        """Parse a condition. Raises ConfigError."""
        found = _CONDITION.fullmatch(text.strip().lower())
        if found is None:
            raise ConfigError("--fail-if", text, _ALLOWED)
        what, name, sign, points = found.groups()
        task = next(task for task, words in _WHAT.items() if words == what)
        return Condition(text, task, name, sign == "<", float(points.replace("−", "-")) / 100)

    def met(self, found: Sequence[Change]) -> list[Change]:
        """The changes that meet it by their whole interval; of ``any``, by the interval that holds for all at once.

        Raises ConfigError if nothing was measured that it names, or a probe has not converged.
        """
        own = [c for c in found if c.score.startswith(f"{self.task}/") and self.name in (_ANY, c.transformation)]
        if not own:
            names = ", ".join(c.transformation for c in found if c.score.startswith(f"{self.task}/")) or "none"
            raise ConfigError("--fail-if", self.text, f"a measured transformation: {names}")
        if late := [change for change in own if not change.converged]:
            raise ConfigError("--fail-if", self.text, f"probes that have converged; {late[0].score} has not")
        return [change for change in own if self._holds(change)]

    def _holds(self, change: Change) -> bool:
        low, high = (change.low_all, change.high_all) if self.name == _ANY else (change.low, change.high)
        return high < self.limit if self.below else low > self.limit


@dataclass(frozen=True)
class Diff:
    """Differences of two networks.

    Attributes:
        names: of the network before and after.
        changes: of each score and transformation, the largest first.
        failed: conditions that are met, in words.
    """

    names: tuple[str, str]
    changes: tuple[Change, ...]
    failed: tuple[str, ...]

    @property
    def clear(self) -> list[Change]:
        """Changes of converged probes with p < 0.05 after Holm's correction."""
        return [c for c in self.changes if c.converged and c.p_holm is not None and c.p_holm < 0.05]

    def headline(self) -> str:
        """The largest clear change of class, else of reading; without any, how large one may be."""
        before, after = self.names
        for task in ("class", "transformation"):
            own = [change for change in self.changes if change.score.startswith(f"{task}/")]
            clear = [change for change in own if change in self.clear]
            if clear:
                return f"{after} against {before}: {_sentence(clear[0])}; {len(clear)} of {len(own)} changes are clear"
        widest = max(self.changes, key=lambda change: max(abs(change.low_all), abs(change.high_all)))
        most = 100 * max(abs(widest.low_all), abs(widest.high_all))
        return (
            f"{after} against {before}: no clear change of {len(self.changes)}; all are within {most:.1f} points "
            f"({_words(widest)}); {_needed(self.changes[0])}"
        )

    def table(self) -> Table:
        """One row for each score and transformation."""
        before, after = self.names
        columns = (
            Column("score", "Score", "text"),
            Column("transformation", "Transformation", "text"),
            *(Column("before", before), Column("after", after)),
            Column("difference", "Difference", "points", interval=True),
            Column("p_holm", "p, Holm", "number"),
        )
        rows = tuple(
            (
                *(change.score.partition("/")[0], change.transformation, change.before, change.after),
                *((change.value, change.low, change.high), change.p_holm),
            )
            for change in self.changes
        )
        return Table("diff", f"{after} minus {before}, by transformation", columns, rows)

    def text(self, most: int = 8) -> str:
        """The headline, and the largest changes of each score for a terminal; clear ones have a star."""
        lines, left_out = [["", "transformation", *self.names, "points", "95% interval", ""]], 0
        for score in dict.fromkeys(change.score for change in self.changes):
            own = [change for change in self.changes if change.score == score]
            lines += map(self._line, own[:most])
            left_out += len(own[most:])
        notes = [f"{left_out} smaller changes are in the table"] * bool(left_out)
        notes.append(f"* p < 0.05 after Holm's correction over all {len(self.changes)} changes")
        notes += ["† a probe has not converged"] * any(not change.converged for change in self.changes)
        return "\n".join([self.headline(), "", text_table(lines, left=2), *notes, *self.failed])

    def _line(self, change: Change) -> list[str]:
        accuracies = [f"{100 * value:.1f}" for value in (change.before, change.after)]
        ends = f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
        mark = "*" if change in self.clear else "" if change.converged else "†"
        what = _WHAT[change.score.partition("/")[0]]
        return [what, change.transformation, *accuracies, f"{100 * change.value:+.1f}", ends, mark]

    def describe(self) -> dict[str, Any]:
        """Plain JSON."""
        rows = [
            {**{name: getattr(c, name) for name in Change.__dataclass_fields__}, "difference": c.value}
            for c in self.changes
        ]
        return {"names": list(self.names), "headline": self.headline(), "changes": rows, "failed": list(self.failed)}


def diff(
    before: tuple[str, ProbeOutcome], after: tuple[str, ProbeOutcome], conditions: Sequence[Condition] = ()
) -> Diff:
    """Compare the outcomes of two networks, each with its name, on the photographs that both have.

    Raises:
        ConfigError: they have no photographs in common, or a condition names what was not measured.
    """
    found = sorted(changes(before[1], after[1]), key=lambda change: (change.score[0], -abs(change.value)))
    if not found:
        raise ConfigError("diff", f"{before[0]}, {after[0]}", "results with common test photographs and probes")
    failed = [
        f"failed: {condition.text}: {_words(change)}" for condition in conditions for change in condition.met(found)
    ]
    return Diff((before[0], after[0]), tuple(found), tuple(failed))


def chosen(runs: Mapping[Path, ResultsDocument], names: Sequence[str]) -> list[tuple[Path, str]]:
    """Two networks: the only ones of two runs, or those with two names, labels or names of one's own in one run.

    Raises ConfigError, listing what there is.
    """
    if not names:
        return [(path, _only(path, results)) for path, results in runs.items()]
    ((path, results),) = runs.items()
    return [(path, _find(results, name)) for name in names]


def _only(path: Path, results: ResultsDocument) -> str:
    networks = [name for name, own in results.backbones.items() if not own.control]
    if len(networks) != 1:
        given = f"{len(networks)} networks: {', '.join(networks)}"
        raise ConfigError(str(path), given, "a run of one network; of several: substyle diff NAME NAME RUN")
    return networks[0]


def _find(results: ResultsDocument, name: str) -> str:
    labels = labels_of(results)
    found = [own for own in results.backbones if name in (own, labels.get(own))]
    if len(found) != 1:
        raise ConfigError("diff", name, ", ".join(labels.get(own, own) for own in results.backbones))
    return found[0]


def _words(change: Change) -> str:
    what = _WHAT[change.score.partition("/")[0]]
    ends = f"{100 * change.low:+.1f} to {100 * change.high:+.1f}"
    return f"{what} {change.transformation} {100 * change.value:+.1f} points ({ends})"


def _sentence(change: Change) -> str:
    what = _WHAT[change.score.partition("/")[0]]
    verb = "fell" if change.value < 0 else "rose"
    return (
        f"{what} {change.transformation} {verb} {100 * abs(change.value):.1f} ± "
        f"{50 * (change.high - change.low):.1f} points"
    )


def _needed(change: Change) -> str:
    """How many test photographs would make a change clear, if it is as large as measured."""
    half = (change.high_all - change.low_all) / 2
    if not change.value:
        return "nothing has changed"
    count = math.ceil(change.units * (half / abs(change.value)) ** 2)
    return f"about {count:,} test photographs, and as many times more for training, would make {_words(change)} clear"
