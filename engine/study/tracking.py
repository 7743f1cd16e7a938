"""Experiment trackers: progress, tables and the report of a run in trackio, Weights & Biases, MLflow or TensorBoard.

All calls run on one thread of their own, since trackers wait for networks and keep their run in thread-local state. The
first call that fails ends tracking with a warning; the run goes on.
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from substyle.engine import observability
from substyle.engine.config import TrackConfig
from substyle.engine.report.data import Table
from substyle.engine.report.page import flat
from substyle.engine.report.tables import overview
from substyle.engine.results.model import ResultsDocument
from substyle.errors import MissingError

_WAIT_S = 120.0  # for the tracker to finish at the end of a run
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tracker:
    """Functions of a library for one run.

    Attributes:
        log: numbers by name, at a step.
        table: a table by name, as rows of values by column.
        file: a file to keep.
        finish: end the run; whether it is complete.
    """

    log: Callable[[Mapping[str, float], int], object]
    table: Callable[[str, Rows], object]
    file: Callable[[Path], object]
    finish: Callable[[bool], object]


def _trackio(config: TrackConfig, name: str, settings: Mapping[str, Any], out: Path) -> Tracker:
    trackio = importlib.import_module("trackio")
    run = trackio.init(project=config.project, name=name, config=dict(settings), embed=False)
    return Tracker(
        log=lambda values, step: run.log(dict(values)),
        table=lambda title, rows: run.log({f"tables/{title}": trackio.Table(data=list(rows))}),
        file=lambda path: run.log_artifact(
            path, name=re.sub(r"[^\w.-]", "-", f"{run.name}-{path.stem}", flags=re.A), type="report"
        ),
        finish=lambda complete: trackio.finish(),
    )


def _wandb(config: TrackConfig, name: str, settings: Mapping[str, Any], out: Path) -> Tracker:
    wandb = importlib.import_module("wandb")
    run = wandb.init(project=config.project, name=name, config=dict(settings), dir=str(out))

    def table(title: str, rows: Rows) -> None:
        columns = list(rows[0])
        run.log({f"tables/{title}": wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])})

    def file(path: Path) -> None:
        artifact = wandb.Artifact(f"{path.stem}-{run.id}", type="report")
        artifact.add_file(str(path))
        run.log_artifact(artifact)

    return Tracker(
        log=lambda values, step: run.log(dict(values)),
        table=table,
        file=file,
        finish=lambda complete: run.finish(exit_code=0 if complete else 1),
    )


def _mlflow(config: TrackConfig, name: str, settings: Mapping[str, Any], out: Path) -> Tracker:
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(config.project)
    mlflow.start_run(run_name=name)
    mlflow.log_params(dict(settings))

    def table(title: str, rows: Rows) -> None:
        mlflow.log_table({column: [row[column] for row in rows] for column in rows[0]}, f"tables/{title}.json")

    def log(values: Mapping[str, float], step: int) -> None:
        # characters that MLflow allows in names; not @=,+ of backbones
        mlflow.log_metrics({re.sub(r"[^\w/. :-]", " ", key): value for key, value in values.items()}, step)

    return Tracker(
        log,
        table,
        file=lambda path: mlflow.log_artifact(str(path)),
        finish=lambda complete: mlflow.end_run("FINISHED" if complete else "FAILED"),
    )


def _tensorboard(config: TrackConfig, name: str, settings: Mapping[str, Any], out: Path) -> Tracker:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(out / "tensorboard"))
    writer.add_text("settings", _markdown([settings]))

    def log(values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return Tracker(
        log,
        table=lambda title, rows: writer.add_text(f"tables/{title}", _markdown(rows)),
        file=lambda path: writer.add_text(path.name, str(path.absolute())),
        finish=lambda complete: writer.close(),
    )


def _markdown(rows: Rows) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_LIBRARIES: dict[str, Callable[[TrackConfig, str, Mapping[str, Any], Path], Tracker]] = {
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
}


class _Calls:
    """Calls of a tracker, on a thread of their own; none after the first that fails."""

    def __init__(self, begin: Callable[[], Tracker], library: str) -> None:
        self.library, self.complete = library, False
        self.calls: queue.SimpleQueue[Callable[[Tracker], object] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, args=(begin,), name=f"tracker {library}", daemon=True)
        self.thread.start()

    def _work(self, begin: Callable[[], Tracker]) -> None:
        try:
            tracker = begin()
            while (call := self.calls.get()) is not None:
                call(tracker)
            tracker.finish(self.complete)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a tracker raises, the run goes on
            print(f"warning: {self.library} failed, no more is tracked: {error!r}", file=sys.stderr)

    def close(self) -> None:
        self.calls.put(None)
        self.thread.join(_WAIT_S)
        if self.thread.is_alive():
            print(f"warning: {self.library} did not finish in {_WAIT_S:.0f} s; going on without it", file=sys.stderr)


@contextmanager
def tracked(
    config: TrackConfig, name: str, settings: Mapping[str, Any], out: Path
) -> Iterator[Callable[[ResultsDocument, Callable[[], Sequence[Table]]], None]]:
    """Track progress of the stages in the block. Yields a function to call with results and what makes their tables.

    Args:
        config: the tracker; none if ``to`` is empty.
        settings: shown beside the run.
        out: output folder with the report.

    Raises:
        MissingError: the library is not installed.
    """
    if not config.to:
        yield lambda *_: None
        return
    if importlib.util.find_spec(config.to) is None:
        extra = "substyle[track]" if config.to == "trackio" else config.to
        raise MissingError("track.to", f"{config.to} is not installed; pip install '{extra}'")
    calls = _Calls(lambda: _LIBRARIES[config.to](config, name, settings, out), config.to)

    def progress(bar: observability.ProgressBar) -> None:
        done, name = bar.n, bar.name
        values = {f"{name}/done": done, f"{name}/total": bar.total, f"{name}/per_second": bar.rate}
        calls.calls.put(lambda tracker: tracker.log(values, done))

    def finished(results: ResultsDocument, tables: Callable[[], Sequence[Table]]) -> None:
        for table in tables():
            if not table.name.startswith("confusion"):  # long, and in the report
                columns, rows = flat(table)
                records = [dict(zip([each for each, _ in columns], row, strict=True)) for row in rows]
                calls.calls.put(partial(lambda title, rows, tracker: tracker.table(title, rows), table.name, records))
        scores = _scores(results)
        calls.calls.put(lambda tracker: tracker.log(scores, 0))
        calls.calls.put(lambda tracker: tracker.file(out / "report.html"))

    try:
        with observability.listening(progress):
            yield finished
        calls.complete = True
    finally:
        calls.close()


def _scores(results: ResultsDocument) -> dict[str, float]:
    """Numbers of the table of probe accuracies, by backbone, head and score."""
    columns, rows = flat(overview(results))
    return {
        f"{row[0]}/{row[1]}/{name}": value
        for row in rows
        for (name, kind), value in zip(columns, row, strict=True)
        if kind in ("share", "points") and value is not None
    }
