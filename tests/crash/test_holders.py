"""Stores that another run holds, or that were moved."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import MORE, PIXELS, Witness, differences, embed, whole_table
from tests.crash.moments import begun, paused, records, until
from tests.crash.processes import Fault, Limits, Warm

from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table


def holder(store: Path) -> dict[str, str]:
    """What the one lock of a store says."""
    (path,) = store.glob("lock*.json")
    found: dict[str, str] = json.loads(path.read_text())
    return found


def test_a_second_run_is_refused_and_told_whose_store_it_is(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    arguments = embed(finished.images, store)
    run = warm(arguments)
    until(lambda: records(store) >= 2, run)
    with paused(run, store):
        said = holder(store)
        told = said["run"], f"pid {run.pid}", socket.gethostname(), said["since"]
        ended = warm(arguments).wait().require(1, *told)
        assert len(ended.said) == 1
        more = embed(finished.images, store, suite=MORE)
        warm(more).wait().require(1, *told)
        assert holder(store) == said
    run.wait().require(0)
    assert differences(store, finished.store) == []


def test_the_lock_of_a_killed_run_is_taken_over(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    begun(warm, finished.images, finished.store, store)
    dead = holder(store)["run"]
    ended = warm(embed(finished.images, store)).wait().require(0, dead)
    assert len(ended.said) == 2  # the second is the result
    assert differences(store, finished.store) == []


@pytest.mark.slow
def test_a_killed_run_that_nobody_has_waited_for_holds_nothing(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    # its number stays in use, as in a container whose first process collects no children
    store = tmp_path / "s.zarr"
    run = warm(embed(finished.images, store))
    until(lambda: records(store) >= 2, run)
    run.signal(signal.SIGKILL)
    warm(embed(finished.images, store)).wait().require(0, holder(store)["run"] if list(store.glob("lock*")) else "")
    assert run.wait().code == -9
    assert differences(store, finished.store) == []


@pytest.mark.slow
def test_a_lock_whose_number_another_process_has_now_is_taken_over(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    begun(warm, finished.images, finished.store, store)
    (path,) = store.glob("lock*.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "pid": os.getpid()}))
    warm(embed(finished.images, store)).wait().require(0, found["run"])
    assert differences(store, finished.store) == []


@pytest.mark.slow
def test_the_lock_of_another_host_stays(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    witness = begun(warm, finished.images, finished.store, store)
    (path,) = store.glob("lock*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another-host"}))
    before = path.read_text()
    warm(embed(finished.images, store)).wait().require(1, "another-host", f"remove {path}")
    assert path.read_text() == before
    witness.look(store)
    path.unlink()
    warm(embed(finished.images, store)).wait().require(0)
    assert differences(store, finished.store) == []


@pytest.mark.slow
def test_a_store_that_was_moved_is_read_and_goes_on(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    unfinished = tmp_path / "a" / "s.zarr"
    witness = begun(warm, finished.images, finished.store, unfinished)
    (tmp_path / "b").mkdir()
    store = unfinished.rename(tmp_path / "b" / "renamed.zarr")
    witness.look(store)
    warm(embed(None, store)).wait().require(0)  # it knows where its photographs are
    assert differences(store, finished.store) == []
    moved = store.rename(tmp_path / "a" / "again.zarr")
    np.testing.assert_array_equal(
        load_table(EmbeddingStore.open(moved), PIXELS).x_TND, whole_table(finished.store, PIXELS).x_TND
    )
    ended = warm(embed(finished.images, moved, suite=MORE)).wait()
    assert ended.require(0).answer["new_shards"] == finished.shards
    assert load_table(EmbeddingStore.open(moved), PIXELS).x_TND.shape[:2] == (4, 8 * finished.shards)
    assert [path.name for path in moved.parent.iterdir()] == ["again.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a store, named.zarr", "größe", "s%20.zarr", "-s.zarr", "[a].zarr"])
def test_names_of_stores(warm: Warm, tiny: Whole, tmp_path: Path, name: str) -> None:
    store = tmp_path / name
    witness = Witness(tiny.store)
    fault = Fault(str(tmp_path), 40, "SIGKILL")
    warm(embed(tiny.images, store), Limits(fault=fault)).wait().require(-9)
    witness.look(store)
    warm(embed(tiny.images, store)).wait().require(0)
    assert differences(store, tiny.store) == []
