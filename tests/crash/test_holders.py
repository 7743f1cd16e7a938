"""Stores that another run holds, or that were moved."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import MORE, differences, embed
from tests.crash.moments import begun, paused, records, until
from tests.crash.processes import Warm


def holder(store: Path) -> dict[str, str]:
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
