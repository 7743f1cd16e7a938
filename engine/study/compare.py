"""Comparison of runs: scores by backbone, and differences in setup."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from substyle import files
from substyle.engine.probes.outcomes import ProbeOutcome, differences
from substyle.engine.report.data import Column, ComparedScore, Scored, Table, cell_of, dagger, show
from substyle.engine.report.page import flat, write_page, write_tables
from substyle.engine.report.tables import text_table
from substyle.engine.results.model import BackboneResults, Estimate, ResultsDocument
from substyle.engine.stages import registry
from substyle.engine.stages.results import validate_results
from substyle.engine.store.layout import PIXELS, network_identity, slug
from substyle.engine.study import outputs
from substyle.errors import ConfigError

Runs = Sequence[tuple[str, dict[str, Any]]]  # as JSON, since setups differ in any part

_SETUP = (
    *("suite", "transformations", "images", "photographs", *PIXELS, "dtype", "classes", "splits", "resampled"),
    *("left_out", "indistinct", "version"),
)
_UNKNOWN = "not recorded"
_CLEAR = "the paired interval excludes 0, and both probes have converged"
_NO_NUMBERS = ("device", "threads", "table")  # settings that change no score


@dataclass(frozen=True)
class Difference:
    """A setting in which runs differ, and its value in each run as text."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        setup: settings in which the runs differ; empty if they are comparable.
        table: one row per backbone and score: value of each run, and difference to the first run, with its interval.
        clear: which differences are clear, in the order of the table.
        files: page and table files.
    """

    setup: tuple[Difference, ...]
    table: Table
    clear: tuple[tuple[bool, ...], ...]
    files: tuple[Path, ...]

    def text(self) -> str:
        """The table for a terminal, in per cent and points; clear differences have a star, and unconverged probes †."""
        runs = len(self.clear[0]) + 1 if self.clear else 0
        lines = [[column.heading for column in self.table.columns]]
        for row, clear in zip(self.table.rows, self.clear, strict=True):
            values = [show(value and value[0]) + dagger(value) for value in row[2 : 2 + runs]]
            changes = [
                show(change and change[0], "points") + (" *" if mark else "  ")
                for change, mark in zip(row[2 + runs :], clear, strict=True)
            ]
            lines.append([*row[:2], *values, *changes])
        note = [f"* {_CLEAR}"] * any(map(any, self.clear))
        paired = any(change and change[1] is not None for row in self.table.rows for change in row[2 + runs :])
        note += ["differences of probes are over the photographs and transformations that both runs have"] * paired
        late = any(dagger(value) for row in self.table.rows for value in row[2 : 2 + runs])
        note += ["† the probe has not converged"] * late
        return "\n".join([text_table(lines, left=2), *note])


def outcomes_of(out: Path, results: Mapping[str, Any]) -> dict[str, ProbeOutcome]:
    """Outcomes of probes by backbone, of the folders in an output folder from which results.json was written.

    Raises:
        StaleError: they have changed.
        SubstyleError: they cannot be read.
    """
    found, stamps = {}, results.get("stamps") or {}
    for name in results["backbones"]:
        folder = f"{registry.REPORTED[0]}/{slug(name)}"
        if folder in stamps and outputs.stamps(out, [slug(name)]).get(folder) == stamps[folder]:
            found[name] = ProbeOutcome.load(files.inside(out, folder))
    return found


def compare_results(runs: Runs, out_dir: Path, outcomes: Sequence[Mapping[str, ProbeOutcome]] = ()) -> Comparison:
    """Compare runs; writes ``compare.html`` and ``tables/compare.*``.

    Differences are relative to the first run. If the photographs are the same and outcomes are known, a difference is
    over the photographs and transformations that both runs have, and has a paired interval: as in a report, of held-out
    transformations over photographs and transformations. It counts as clear if the interval excludes 0, both probes
    have converged, and the runs have the same definitions of transformations and the same classes.

    Args:
        runs: (name, results.json) of at least two runs with distinct names.
        out_dir: output folder, created if missing.
        outcomes: of each run, from `outcomes_of`; default: unknown.

    Raises:
        ConfigError: fewer than two runs, or names that clash.
        SubstyleError: invalid results.
    """
    names = [name for name, _ in runs]
    columns, _ = flat(Table("compare", "", _columns(names), ()))
    if len(runs) < 2 or len({name for name, _ in columns}) < len(columns):
        raise ConfigError("compare.runs", names, "at least two runs with distinct names")
    documents = [validate_results(results) for _, results in runs]
    setup = tuple(_differences([results for _, results in runs]))
    rows = _rows(documents, _paired(runs, outcomes), [_same_task(runs[0][1], results) for _, results in runs])
    table = Table("compare", "Comparison of runs.", _columns(names), tuple(_flat(row) for row in rows))
    context = {
        "names": names,
        "setup": setup,
        "groups": [(name, list(own)) for name, own in groupby(rows, lambda row: row.backbone)],
    }
    page = write_page(out_dir / "compare.html", "compare.html.j2", context)
    clear = tuple(tuple(row.clear(run) for run in range(1, len(runs))) for row in rows)
    return Comparison(setup, table, clear, (page, *write_tables([table], out_dir / "tables")))


def _paired(runs: Runs, outcomes: Sequence[Mapping[str, ProbeOutcome]]) -> list[dict[tuple[str, ...], Scored]]:
    """Paired differences of each run to the first, by backbone, task, metric and head; none of other photographs."""
    found: list[dict[tuple[str, ...], Scored]] = [{} for _ in runs]
    for pairs, (_, results), own in zip(found[1:], runs[1:], outcomes[1:], strict=False):
        photographs = _setup(results, "photographs")
        if photographs == _UNKNOWN or photographs != _setup(runs[0][1], "photographs"):
            continue
        for name in own.keys() & outcomes[0].keys():
            for row in differences((name, own[name]), (name, outcomes[0][name])):
                estimate = Estimate(**row["difference"])
                pairs[name, row["task"], row["metric"], row["head"]] = (estimate.value, estimate.low, estimate.high)
    return found


def _same_task(first: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether probes of two runs tell the same transformations and classes apart."""
    suites = [{row["name"]: row for row in results["transformations"]} for results in (first, other)]
    return suites[0] == suites[1] and first.get("classes") == other.get("classes")


def require_comparable(runs: Runs) -> None:
    """Raise ConfigError, naming what differs, unless runs have the same photographs, variants and classes."""
    (name, first), *others = runs
    for other, results in others:
        different = [what for what in ("photographs", *PIXELS) if _setup(results, what) != _setup(first, what)]
        if _setup(first, "photographs") == _UNKNOWN:
            different.insert(0, "photographs, which are not recorded")
        if not _same_task(first, results):
            different.append("transformations or classes")
        if different:
            raise ConfigError("runs", f"{name} and {other}, which differ in {', '.join(different)}", "comparable runs")


def _differences(runs: Sequence[dict[str, Any]]) -> list[Difference]:
    found = []
    for what in _SETUP:
        values = [_setup(results, what) for results in runs]
        if any(value != values[0] for value in values) or values[0] == _UNKNOWN:
            found.append(Difference(what, tuple(_words(value, values[0]) for value in values)))
    stated = [results.get("settings") or {} for results in runs]
    for stage in dict.fromkeys(name for settings in stated for name in settings):
        found += _fields(f"settings of {stage}", [each.get(stage) for each in stated], leave_out=_NO_NUMBERS)
    definitions = [{row["name"]: row for row in results["transformations"]} for results in runs]
    for name in dict.fromkeys(name for rows in definitions for name in rows):
        found += _fields(name, [rows.get(name) for rows in definitions])
    for name in dict.fromkeys(name for results in runs for name in results["backbones"]):
        own = [results["backbones"].get(name, {}) for results in runs]
        found += _fields(name, [each.get("spec") and network_identity(each["spec"]) for each in own])
        found += _fields(f"runtime of {name}", [each.get("runtime") for each in own])
    return found + _fields("environment", [results.get("environment") for results in runs], leave_out=_NO_NUMBERS)


def _fields(what: str, values: Sequence[dict[str, Any] | None], leave_out: Collection[str] = ()) -> list[Difference]:
    """The fields in which tables of several runs differ, as one difference; runs without the table are left out."""
    known = [value for value in values if value is not None]
    names = [
        name
        for name in dict.fromkeys(name for value in known for name in value)
        if name not in leave_out and any(value.get(name) != known[0].get(name) for value in known)
    ]
    shown = [
        "–" if value is None else "; ".join(f"{name} {_json(value.get(name))}" for name in names) for value in values
    ]
    return [Difference(what, tuple(shown))] if names else []


def _setup(results: dict[str, Any], what: str) -> Any:  # noqa: ANN401 (any part of a results.json)
    if what == "transformations":
        return [row["name"] for row in results["transformations"]]
    if what == "photographs":
        identity = results.get("identity") or {}
        return identity.get("data", identity.get(what)) or _UNKNOWN
    return results.get(what)


def _words(value: Any, first: Any) -> str:  # noqa: ANN401 (any part of a results.json)
    if value is None:
        return "–"
    if isinstance(value, list):
        changed = "" if value == first or not isinstance(first, list) else _changed(value, first)
        return f"{len(value)}{changed}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_json(inner)}" for key, inner in value.items())
    return _json(value)


def _json(value: Any) -> str:  # noqa: ANN401 (any part of a results.json)
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _changed(value: list[Any], first: list[Any]) -> str:
    gone, new = [v for v in first if v not in value], [v for v in value if v not in first]
    parts = [
        f"{sign} {', '.join(map(str, names[:5]))}{' …' * (len(names) > 5)}"
        for sign, names in (("without", gone), ("with", new))
        if names
    ]
    return f" ({'; '.join(parts)})" if parts else " (in another order)"


@dataclass(frozen=True)
class _Row:
    backbone: str
    heading: str
    scores: tuple[ComparedScore | None, ...]  # by run
    paired: tuple[Scored | None, ...]
    same_task: Sequence[bool]

    def change(self, run: int) -> Scored | None:
        """Difference to the first run, with its paired interval if there is one."""
        first, score = self.scores[0], self.scores[run]
        if first is None or score is None:
            return None
        return self.paired[run] or (score.estimate.value - first.estimate.value, None, None)

    def clear(self, run: int) -> bool:
        """Whether the paired interval excludes 0, both probes have converged, and both runs ask the same."""
        _, low, high = self.change(run) or (0.0, None, None)
        if low is None or high is None or low <= 0 <= high:
            return False
        converged = all(score is not None and score.converged for score in (self.scores[0], self.scores[run]))
        return converged and self.same_task[run]


def _rows(
    runs: Sequence[ResultsDocument], pairs: Sequence[Mapping[tuple[str, ...], Scored]], same_task: Sequence[bool]
) -> list[_Row]:
    """Scores of all stages by backbone, those of most runs first."""
    names = [name for results in runs for name in results.ordered()]
    rows = []
    for name in sorted(dict.fromkeys(names), key=lambda name: -names.count(name)):
        each = [results.backbones.get(name, BackboneResults()) for results in runs]
        for stage in registry.stages():
            found = [{score.key: score for score in registry.scores_of(stage, own)} for own in each]
            # in the order of the run that has most
            for key in dict.fromkeys(key for scores in sorted(found, key=len, reverse=True) for key in scores):
                scores = tuple(own.get(key) for own in found)
                score = next(filter(None, scores))
                paired = tuple(own.get((name, *score.outcome)) for own in pairs)
                rows.append(_Row(name, score.heading, scores, paired, same_task))
    return rows


def _columns(names: Sequence[str]) -> tuple[Column, ...]:
    first = names[0] if names else ""
    return (
        Column("backbone", "Backbone", "text"),
        Column("score", "Score", "text"),
        *(Column(name, name, interval=True) for name in names),
        *(Column(f"{name}_minus_{first}", f"{name} − {first}", "points", interval=True) for name in names[1:]),
    )


def _flat(row: _Row) -> tuple[Any, ...]:
    values = [score and cell_of(score.estimate, converged=score.converged) for score in row.scores]
    key = next(score.key for score in row.scores if score)
    return (row.backbone, key, *values, *(row.change(run) for run in range(1, len(values))))
