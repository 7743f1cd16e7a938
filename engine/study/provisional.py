"""Reports of a run that has not finished: linear probes first, then what stages have computed so far."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from substyle import files
from substyle.engine import observability
from substyle.engine.config import Study, labels_of
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.stages import registry
from substyle.engine.stages.execution import config_of, folder_of
from substyle.engine.stages.probes import STAGE
from substyle.engine.stages.registry import AnyStage
from substyle.engine.stages.results import validate_results
from substyle.engine.stages.stage import Run
from substyle.engine.stages.stamp import note_of
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study import outputs
from substyle.engine.study.document import assemble
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError
from substyle.kernels.philox import image_keys

log = logging.getLogger(__name__)

PHOTOGRAPHS = 200  # of the first report at most, so that a large study does not wait for it
_EVERY_S = 60.0  # between two reports, each of which takes seconds


class ProvisionalReports:
    """Reports that are written while a run computes its stages, and name those that are pending.

    There are none if the output folder has results. They come without results.json, so that no other command takes
    their numbers for those of the run.

    Args:
        photographs: number of photographs of the study.
    """

    def __init__(self, study: Study, out: Path, photographs: int, *, quiet: bool = False) -> None:
        self.study, self.photographs, self.quiet = study, photographs, quiet
        self.pending = [stage for stage in registry.stages() if stage.of(study) is not None]
        self.wanted = not (out / outputs.RESULTS).exists()
        self.begun = False
        self.written = time.monotonic()

    def begin(self, opened: Callable[[], Run], *, embedding: bool = False) -> None:
        """Write a report of linear probes, unless an interrupted run has left its probes.

        Args:
            opened: returns the run, with embeddings, and results of no stage.
            embedding: other photographs are embedded next.
        """
        self.begun = True
        if not self.wanted:
            return
        with _unless_it_cannot():
            run = opened()
            config = config_of(STAGE, run)
            if config is None or "linear" not in config.heads:
                return
            if not all(note_of(folder_of(STAGE, run, unit)) for unit in STAGE.units(run, config)):
                self._linear(run, config, embedding=embedding)

    def _linear(self, run: Run, config: ProbeConfig, *, embedding: bool) -> None:
        tables = {name: _few(table, self.study.seed) for name, table in run.tables.items()}
        count = len(next(iter(tables.values())).keys)
        shown = str(count) if count == self.photographs else f"{count} of the {self.photographs:,}"
        own = _settings(config, classes=self.photographs <= PHOTOGRAPHS)
        with (
            files.new_files(run.out) as folder,
            observability.stage("first report", len(tables) + 1, "steps", quiet=self.quiet) as bar,
        ):
            small = replace(run, out=folder, tables=tables, results={STAGE.name: {}}, quiet=True, _once={})
            for unit in STAGE.units(small, own):
                (folder / unit.folder).mkdir()
                STAGE.compute(small, own, unit, folder / unit.folder)
                small.results[STAGE.name][unit.key] = STAGE.load(small, folder / unit.folder)
                bar.advance()
            what = f"Linear probes of {shown} photographs, trained once; intervals leave out training."
            self._write(small, run.out, what, embedding=embedding)
            bar.advance()

    def after(self, run: Run, stage: AnyStage) -> None:
        """Write a report of all results so far, if the last one is old and others are pending."""
        self.pending = [each for each in self.pending if each.name != stage.name]
        if self.wanted and self.pending and time.monotonic() - self.written > _EVERY_S:
            with _unless_it_cannot():
                self._write(run, run.out, "")

    def _write(self, run: Run, out: Path, what: str, *, embedding: bool = False) -> None:
        stages = [each.name.replace("_", " ") for each in self.pending]
        pending = ", ".join(["embeddings of the others"] * embedding + stages)
        note = f"{what} Pending: {pending}. This page is replaced when they are computed.".strip()
        name, own = f"{self.study.name} (provisional)", labels_of(self.study.backbones)
        results = assemble(run, name, note=note, threads=self.study.embed.cores, labels=own, limit=self.study.limit)
        with outputs.replacing_report(out) as new:
            write_report(validate_results(results), new, pictures=out)
        if not self.quiet:
            print(f"provisional report: {out / outputs.PAGE} (pending: {pending})", file=sys.stderr)
        self.written = time.monotonic()


@contextmanager
def _unless_it_cannot() -> Iterator[None]:
    """Go on after an error, such as no valid photograph among the few, or results that are to be recomputed."""
    try:
        yield
    except SubstyleError as error:
        log.info("no provisional report: %s", error)


def _settings(config: ProbeConfig, *, classes: bool) -> ProbeConfig:
    """Settings of linear probes that are trained once. Few photographs of many classes say little about the class."""
    chosen = {"transformation", "kind"} | ({"class"} if classes else set())
    tasks = tuple(task for task in config.tasks if task in chosen)
    return replace(config, tasks=tasks, heads=("linear",), rotate="none", redraws=0, resamples=0)


def _few(table: EmbeddingTable, seed: int) -> EmbeddingTable:
    """A random `PHOTOGRAPHS` of a table in memory."""
    order_N = np.argsort(image_keys(seed, [f"provisional:{key}" for key in table.keys]))
    n = np.sort(order_N[:PHOTOGRAPHS])
    every = np.arange(len(table.transformations))
    x_TND = table.take(np.repeat(every, len(n)), np.tile(n, len(every))).reshape(len(every), len(n), -1)
    _, first, group_N = np.unique(table.groups("photograph")[n], return_index=True, return_inverse=True)
    return replace(
        table,
        x_TND=x_TND,
        keys=tuple(table.keys[each] for each in n),
        label_N=table.label_N[n],
        split_N=table.split_N[n],
        distinct_TN=table.distinct_TN[:, n],
        content_N2=None if table.content_N2 is None else table.content_N2[n],
        first_N=first[group_N],
        thumbnail_NRC=None if table.thumbnail_NRC is None else table.thumbnail_NRC[n],
        seen_N=None if table.seen_N is None else table.seen_N[n],
        absent_TN=None if table.absent_TN is None else table.absent_TN[:, n],
    )
