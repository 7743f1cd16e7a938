"""Reading a store while a run fills it: finished shards and nothing else, never other values."""

from __future__ import annotations

import itertools
import signal
import time
from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import (
    PIXELS,
    SUITE,
    copy,
    differences,
    embed,
    paused,
    records,
    same_rows,
    table_or_none,
    transient,
    until,
    whole_table,
)
from tests.crash.processes import Fault, Limits, Warm
from tests.crash.warm import digests

from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, store_facts


def cut(warm: Warm, reference: Whole, folder: Path, at: str) -> Path:
    """A store whose run was killed at the first change of a path that holds a text."""
    (folder / "counted").mkdir(parents=True)
    store = folder / "counted" / "s.zarr"
    made = warm(embed(reference.images, store), Limits(fault=Fault(str(store.parent), 0, ""))).wait().changes
    number = next(i for i, change in enumerate(made, start=1) if at in change)
    (folder / "cut").mkdir()
    store = folder / "cut" / "s.zarr"
    fault = Fault(str(store.parent), number, "SIGKILL")
    warm(embed(reference.images, store), Limits(fault=fault)).wait().require(-9)
    return store


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "least", "readings", "first"),
    [("/3-", 0, 3, 1), ("catalog/.", 0, 3, 2), ("c.0.1.0", 8, 5, 1), ("journal/tables/.r", 12, 5, 2)],
    ids=["no array yet", "no catalog yet", "a shard done", "all done, not compacted"],
)
def test_a_reader_stands_still_while_a_store_is_finished(
    warm: Warm, tiny: Whole, tmp_path: Path, point: str, least: int, readings: int, first: int
) -> None:
    """For every other reading of a table: stop before it, let a run on the store end, read the rest.

    A table has all transformations, no fewer photographs than ``least``, and rows of the whole store. Only where
    ``least`` is 0 may there be nothing to read. Without arrays the catalog is empty, which takes three readings to see.
    """
    before, whole = cut(warm, tiny, tmp_path, point), digests(whole_table(tiny.store, PIXELS))
    for at in itertools.count(first, 2):
        store = copy(before, tmp_path / f"{at}")
        reader = warm.table(store, PIXELS, Fault(str(store.parent), at, "SIGSTOP", reads=True))
        while reader.running() and Path(f"/proc/{reader.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        stopped = reader.running()
        warm(embed(tiny.images, store)).wait().require(0)
        reader.signal(signal.SIGCONT)
        ended = reader.wait().require(0)
        said = f"stopped at {ended.changes[at - 1] if stopped else 'the end'}: {ended.out[:500]}"
        if "error" in ended.answer:
            assert not least, said
            assert transient(ended.answer["error"]), said
        else:
            rows: dict[str, dict[str, str]] = ended.answer["rows"]
            assert set(rows) == set(SUITE.split(",")), said
            for name, by_key in rows.items():
                assert len(by_key) >= least, said
                assert by_key.items() <= whole[name].items(), said
        if not stopped:
            break
    assert at > readings, ended.changes


# --- a run stands still -----------------------------------------------------------------------------------------------


def test_reading_while_a_run_stands_still(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store, whole = tmp_path / "s.zarr", whole_table(finished.store, PIXELS)
    assert table_or_none(store, PIXELS) is None
    run = warm(embed(finished.images, store))
    counts = []
    for count in (1, 3, 6):
        until(lambda count=count: records(store) >= count, run)  # type: ignore[misc]
        with paused(run, store):
            opened = EmbeddingStore.open(store)
            store_facts(opened)
            table = load_table(opened, PIXELS)
            assert set(table.transformations) == set(SUITE.split(","))
            same_rows(table, whole)
            counts.append(len(table.keys))
    assert counts == sorted(set(counts)), counts
    assert counts[0] >= 8
    run.wait().require(0)
    same_rows(load_table(opened, PIXELS), whole)  # of the store that was open before the end
    assert differences(store, finished.store) == []
