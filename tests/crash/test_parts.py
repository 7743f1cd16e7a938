"""Who may fill a store, and parts of one run side by side, which make the store of a single run."""

from __future__ import annotations

import json
import random
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import (
    MORE,
    SUITE,
    after,
    begun,
    copy,
    differences,
    embed,
    paused,
    records,
    uninterrupted,
    until,
)
from tests.crash.processes import Ended, Run, Warm


def part(reference: Whole, store: Path, index: int, count: int, *more: str, suite: str = SUITE) -> list[str]:
    return embed(reference.images, store, "--part", f"{index}/{count}", *more, suite=suite)


def all_end(runs: Sequence[Run]) -> list[Ended]:
    return [run.wait().require(0) for run in runs]


def closes(warm: Warm, reference: Whole, store: Path, suite: str = SUITE) -> None:
    """A plain run finds nothing to do and leaves the store of a single run."""
    assert differences(store, reference.store, loose=True) == []
    ended = warm(embed(reference.images, store, suite=suite)).wait().require(0)
    assert ended.answer["new_shards"] == 0
    assert differences(store, reference.store) == []


@pytest.mark.parametrize("count", [2, pytest.param(7, marks=pytest.mark.slow)])
def test_parts_that_start_together_make_the_store_of_one_run(
    warm: Warm, finished: Whole, tmp_path: Path, count: int
) -> None:
    store = tmp_path / "s.zarr"
    ended = all_end([warm(part(finished, store, i + 1, count)) for i in range(count)])
    shares = [len(range(i, finished.shards, count)) for i in range(count)]
    assert [end.answer["new_shards"] for end in ended] == shares
    closes(warm, finished, store)


@pytest.mark.slow
def test_a_part_runs_beside_other_parts_only(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    plain, first, second = embed(finished.images, store), *(part(finished, store, i, 2) for i in (1, 2))
    for arguments, refusals in ((plain, [second]), (first, [first, plain, part(finished, store, 2, 3)])):
        shutil.rmtree(store, ignore_errors=True)
        run = warm(arguments)
        until(lambda: records(store) >= 2, run)
        with paused(run, store):
            for refused in refusals:
                ended = warm(refused).wait().require(1, f"pid {run.pid}")
                assert len(ended.said) == 1, ended.err
            if arguments is first:  # the other part is welcome
                assert warm(second).wait().require(0).answer["new_shards"] == finished.shards // 2
        run.wait().require(0)
        closes(warm, finished, store)


def kill_parts(
    warm: Warm, reference: Whole, store: Path, kills: int, seed: int, *, parts: int = 2, suite: str = SUITE
) -> int:
    """Kill parts at random moments while their siblings go on; each killed one starts again until all are done."""
    rng, hit = random.Random(seed), 0
    runs = {i: warm(part(reference, store, i, parts, suite=suite)) for i in range(1, parts + 1)}
    while runs:
        index = rng.choice(sorted(runs))
        after(rng, reference.seconds / 4)(runs[index])
        if hit < kills and runs[index].running():
            ended = runs[index].kill()
            if ended.code == -9:
                hit += 1
                runs[index] = warm(part(reference, store, index, parts, suite=suite))
                continue
            ended.require(0)
            del runs[index]
        elif not runs[index].running():
            runs.pop(index).wait().require(0)
    return hit


@pytest.mark.slow
def test_a_killed_part_goes_on(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    assert kill_parts(warm, finished, tmp_path / "s.zarr", kills=2, seed=1) == 2
    closes(warm, finished, tmp_path / "s.zarr")


@pytest.mark.slow
def test_parts_append_images_and_add_a_transformation(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    before = tmp_path / "before" / "s.zarr"
    warm(embed(finished.images, before, "--set", "limit=36")).wait().require(0)
    store = copy(before, tmp_path / "whole")
    _, seconds = uninterrupted(warm, embed(finished.images, store, suite=MORE))
    reference = Whole(finished.images, store, seconds, finished.shards)
    grown = copy(before, tmp_path / "grown")
    kill_parts(warm, reference, grown, kills=4, seed=1, suite=MORE)
    closes(warm, reference, grown, suite=MORE)


# --- other runs -------------------------------------------------------------------------------------------------------


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
    warm(embed(finished.images, store, "--take-over")).wait().require(0)
    assert differences(store, finished.store) == []
