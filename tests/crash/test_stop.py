"""Runs that are asked to stop, by Ctrl-C or by a scheduler: they say so in a line and leave a store that goes on."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import Witness, differences, embed
from tests.crash.moments import after, records, until
from tests.crash.processes import Warm, cold

KINDS = pytest.mark.parametrize(
    ("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "terminate"]
)


@KINDS
def test_a_stopped_run_says_so_and_keeps_its_shards(
    warm: Warm, finished: Whole, tmp_path: Path, kind: signal.Signals, code: int
) -> None:
    store, witness = tmp_path / "s.zarr", Witness(finished.store)
    arguments = embed(finished.images, store)
    run = warm(arguments)
    until(lambda: records(store) >= 3, run)
    run.signal(kind)
    ended = run.wait().require(code, "substyle: ", "kept")
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert ended.out == ""
    assert not list(store.glob("lock*"))
    assert witness.look(store) >= 3
    warm(arguments).wait().require(0)
    witness.look(store)
    assert differences(store, finished.store) == []


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_stopped_at_random_moments(
    warm: Warm, finished: Whole, tmp_path: Path, kind: signal.Signals, code: int, seed: int
) -> None:
    rng, store, witness = random.Random(seed), tmp_path / "s.zarr", Witness(finished.store)
    arguments, hit = embed(finished.images, store), 0
    for _ in range(8):
        run = warm(arguments)
        after(rng, 0.9 * finished.seconds)(run)
        if run.running():
            run.signal(kind)
            ended = run.wait()
            if ended.code == 0:
                break  # the signal came when all was done
            ended.require(code, "substyle: ")
            hit += 1
        assert not list(store.glob("lock*"))
        witness.look(store)
    assert hit
    warm(arguments).wait().require(0)
    assert differences(store, finished.store) == []


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("delay", [0.4, 0.8, 1.2, 1.6, 2.4])
def test_stopped_while_it_starts(
    finished: Whole, tmp_path: Path, kind: signal.Signals, code: int, delay: float
) -> None:
    store = tmp_path / "s.zarr"
    run = cold(embed(finished.images, store))
    time.sleep(delay)
    assert run.running()
    run.signal(kind)
    run.wait().require(code, "substyle: ")
    assert not list(store.glob("lock*"))
