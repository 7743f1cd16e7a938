"""Reading a store while a run fills it: finished shards and nothing else, never fewer, never other values."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import (
    PIXELS,
    SUITE,
    differences,
    embed,
    same_rows,
    table_or_none,
    whole_table,
)
from tests.crash.moments import paused, records, until
from tests.crash.processes import Run, Warm

from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, store_facts


@dataclass
class Reader:
    """Reads a store again and again.

    Attributes:
        keep_open: open it once.
        names: transformations that each table must have.
        early: attempts before there was anything to read.
        counts: photographs of each table, in order.
        tables: one table for each count.
    """

    store: Path
    backbone: str = PIXELS
    keep_open: bool = False
    names: Sequence[str] = tuple(SUITE.split(","))
    early: int = 0
    counts: list[int] = field(default_factory=list)
    tables: dict[int, EmbeddingTable] = field(default_factory=dict)
    opened: EmbeddingStore | None = None

    def read(self) -> None:
        """One attempt. Only before the first table may it be told that nothing is there."""
        if self.keep_open and self.opened is None and self.store.exists():
            self.opened = EmbeddingStore.open(self.store)
        table = table_or_none(self.opened or self.store, self.backbone)
        if table is None:
            assert not self.counts, f"nothing to read after {self.counts[-1]} photographs"
            self.early += 1
            return
        store_facts(self.opened or EmbeddingStore.open(self.store))
        assert set(table.transformations) == set(self.names), table.transformations
        assert not self.counts or len(table.keys) >= self.counts[-1], "fewer than before"
        self.tables.setdefault(len(table.keys), table)
        self.counts.append(len(table.keys))

    def read_while(self, running: Callable[[], bool]) -> None:
        """Read until the runs have ended, and once more."""
        while running():
            self.read()
            time.sleep(0.001)
        self.read()


def check(reader: Reader, reference: Path, *, counts: int) -> None:
    """All tables that were seen hold rows of the finished store; at least so many sizes were seen on the way."""
    whole = whole_table(reference, reader.backbone)
    for table in reader.tables.values():
        same_rows(table, whole)
    assert reader.counts[-1] == len(whole.keys)
    assert len(reader.tables) >= counts, reader.counts


def run_and_read(runs: Sequence[Run], *readers: Reader) -> None:
    """Read until the runs have ended well; on the way they stand still a few times, that every reader sees it there."""
    store = readers[0].store
    first = records(store)

    def running() -> bool:
        return any([run.running() for run in runs])

    def read() -> None:
        for reader in readers:
            reader.read()

    read()
    for count in (1, 3, 6):  # without a read between them, in which a fast run would end
        while running() and records(store) < first + count:
            time.sleep(0.001)
        for run in runs:
            if run.running():
                run.signal(signal.SIGSTOP)
        read()
        for run in runs:
            if run.running():
                run.signal(signal.SIGCONT)
    while running():
        read()
        time.sleep(0.001)
    read()
    for run in runs:
        run.wait().require(0)


def test_reading_while_a_run_stands_still(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    reader = Reader(store)
    reader.read()
    run = warm(embed(finished.images, store))
    for count in (1, 3, 6):
        until(lambda count=count: records(store) >= count, run)  # type: ignore[misc]
        with paused(run, store):
            reader.read()
    run.wait().require(0)
    reader.read()
    check(reader, finished.store, counts=3)
    assert reader.early  # it began before anything was there
    assert differences(store, finished.store) == []


@pytest.mark.slow
def test_reading_while_runs_are_killed(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    reader = Reader(store)
    for _ in range(6):
        run = warm(embed(finished.images, store))
        end = time.monotonic() + 0.6 * finished.seconds
        reader.read_while(lambda run=run, end=end: run.running() and time.monotonic() < end)  # type: ignore[misc]
        if run.running():
            assert run.kill().code in (-9, 0)
        reader.read()
    run_and_read([warm(embed(finished.images, store))], reader)
    check(reader, finished.store, counts=3)
