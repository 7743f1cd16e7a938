"""Runs that are stopped at the n-th change they make to files, for every n: no point of a run harms a store."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import Witness, differences, embed
from tests.crash.processes import Ended, Fault, Limits, Warm


def changes(warm: Warm, arguments: Sequence[str], root: Path) -> tuple[str, ...]:
    """The changes below a folder that an uninterrupted run makes, in order."""
    return warm(arguments, Limits(fault=Fault(str(root), 0, ""))).wait().require(0).changes


def stop_at(warm: Warm, folder: Path, reference: Whole, at: int, action: str, code: int, *messages: str) -> None:
    """A run on a new store that something happens to at its ``at``-th change; another run ends like the reference."""
    store = folder / "s.zarr"
    folder.mkdir()
    arguments = embed(reference.images, store)
    ended = warm(arguments, Limits(fault=Fault(str(folder), at, action))).wait()
    point = f"{action} at {ended.changes[at - 1] if len(ended.changes) >= at else 'no change'}"
    try:
        require_stopped(ended, at, code, *messages)
        witness = Witness(reference.store)
        witness.look(store)
        if code > 0:
            assert not list(store.glob("lock*")), "the lock was left behind"
        warm(arguments).wait().require(0)
        witness.look(store)
        assert differences(store, reference.store) == []
    except AssertionError as error:
        raise AssertionError(f"{point}: {error}") from error


def require_stopped(ended: Ended, at: int, code: int, *messages: str) -> None:
    """Assert that a run was stopped at its ``at``-th change; one that made fewer, as chance has it, ended well."""
    if len(ended.changes) < at:
        assert len(ended.changes) > at // 2, ended.changes
        ended.require(0)
    else:
        ended.require(code, *messages)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_killed_at_some_changes_of_files(warm: Warm, tiny: Whole, tmp_path: Path, share: float) -> None:
    (tmp_path / "counted").mkdir()
    count = len(changes(warm, embed(tiny.images, tmp_path / "counted" / "s.zarr"), tmp_path / "counted"))
    stop_at(warm, tmp_path / "killed", tiny, max(1, round(share * count)), "SIGKILL", -9)


@pytest.mark.slow
def test_killed_twice_at_changes_of_files(warm: Warm, tiny: Whole, tmp_path: Path) -> None:
    (tmp_path / "counted").mkdir()
    count = len(changes(warm, embed(tiny.images, tmp_path / "counted" / "s.zarr"), tmp_path / "counted"))
    rng = random.Random(4)
    for i in range(25):
        folder = tmp_path / f"{i}"
        folder.mkdir()
        store, witness = folder / "s.zarr", Witness(tiny.store)
        arguments = embed(tiny.images, store)
        first, second = rng.randint(1, count), rng.randint(1, count)
        require_stopped(warm(arguments, Limits(fault=Fault(str(folder), first, "SIGKILL"))).wait(), first, -9)
        witness.look(store)
        ended = warm(arguments, Limits(fault=Fault(str(folder), second, "SIGKILL"))).wait()
        assert ended.code in (-9, 0), ended.err  # the rest may take fewer changes
        witness.look(store)
        warm(arguments).wait().require(0)
        assert differences(store, tiny.store) == [], f"killed at changes {first} and {second}"
