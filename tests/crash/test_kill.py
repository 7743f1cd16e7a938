"""Runs that are killed: what was finished stays, and the store ends like one that no run was ever killed on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.crash.conftest import Whole, photographs, whole
from tests.crash.harness import (
    COMPILED,
    PIXELS,
    STATISTICS,
    SUITE,
    Witness,
    after,
    copy,
    differences,
    embed,
    fill,
    uninterrupted,
    upon,
)
from tests.crash.processes import Fault, Limits, Start, Warm, cold


def many_kills(
    start: Start,
    root: Path,
    reference: Whole,
    kills: int,
    seed: int,
    *,
    backbones: Sequence[str] = (PIXELS,),
    suite: str = SUITE,
    before: Path | None = None,
    more: Sequence[str] = (),
) -> int:
    """Kill runs at random moments, on as many stores as it takes; every store ends like the reference.

    Args:
        before: the store that each begins with, a copy of it; None begins with none.
        more: further arguments of the runs.
    """
    rng = random.Random(seed)
    hit = number = 0
    seconds = reference.seconds
    while hit < kills:
        folder = root / f"{number}"
        store = copy(before, folder) if before else folder / reference.store.name
        arguments = embed(reference.images, store, *more, backbones=backbones, suite=suite, rows=reference.rows)
        witness = Witness(reference.store, backbones)
        new = fill(start, arguments, store, after(rng, seconds), kills=kills - hit, witness=witness)
        hit += new
        seconds *= 1.0 if new else 0.8  # a machine that has become quicker is caught up with
        assert differences(store, reference.store) == []
        number += 1
        assert number < 10 * kills, "runs end before they can be killed"
    return hit


def test_killed_at_random_moments(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    assert many_kills(warm, tmp_path, finished, kills=2, seed=1) == 2


@pytest.mark.slow
def test_killed_with_real_variants(warm: Warm, tmp_path: Path) -> None:
    """Some of which are missing: their rows are NaN, and what is noted of files is the same."""
    images = tmp_path / "real"
    for name in ("identity", "phone"):
        photographs(images / name, 40, first=0)
    for number in range(3, 40, 5):
        next((images / "phone").rglob(f"{number:04d}.jpg")).unlink()
    suite = tmp_path / "pairs.toml"
    suite.write_text('transformations = ["grayscale", { name = "phone", of = "photographs" }]')
    more = ("--set", "source.kind=variants")
    store = tmp_path / "whole" / "s.zarr"
    ended, seconds = uninterrupted(warm, embed(images, store, *more, suite=str(suite)))
    assert len(ended.answer["left_out"]["phone"]) == 8
    reference = Whole(images, store, seconds, 5)
    assert many_kills(warm, tmp_path, reference, kills=3, seed=12, suite=str(suite), more=more) == 3


@pytest.mark.slow
def test_fresh_processes_killed_at_random_moments(finished: Whole, tmp_path: Path) -> None:
    _, seconds = uninterrupted(cold, embed(finished.images, tmp_path / "first" / "s.zarr"))
    reference = Whole(finished.images, finished.store, seconds, finished.shards)
    assert many_kills(cold, tmp_path, reference, kills=10, seed=2) == 10


@pytest.mark.slow
def test_killed_in_a_long_run(warm: Warm, tmp_path: Path) -> None:
    # so many shards that records are compacted on the way, too
    images = photographs(tmp_path / "images", 280)
    reference = whole(warm, tmp_path / "whole", images, rows=1)
    assert many_kills(warm, tmp_path, reference, kills=10, seed=9) == 10
    store = tmp_path / "compacting" / "s.zarr"
    moment = upon(lambda: any((store / "journal").glob("tables/*")), random.Random(10), 0.02)
    arguments = embed(images, store, rows=1)
    assert fill(warm, arguments, store, moment, kills=1, witness=Witness(reference.store)) == 1
    assert differences(store, reference.store) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "more"),
    [
        ((), {"backbones": (PIXELS, STATISTICS)}),
        (("--set", "limit=36"), {}),
        ((), {"suite": f"{SUITE},gaussian_blur,jpeg"}),
        (None, {"backbones": (PIXELS, COMPILED)}),
    ],
    ids=["a backbone", "photographs", "transformations", "everything"],
)
def test_killed_while_something_is_added(
    warm: Warm, finished: Whole, tmp_path: Path, first: Sequence[str] | None, more: dict[str, Any]
) -> None:
    before, store = None, tmp_path / "whole" / "s.zarr"
    if first is not None:
        before = tmp_path / "before" / "s.zarr"
        warm(embed(finished.images, before, *first)).wait().require(0)
        store = copy(before, tmp_path / "whole")
    _, seconds = uninterrupted(warm, embed(finished.images, store, **more))
    reference = Whole(finished.images, store, seconds, finished.shards)
    assert many_kills(warm, tmp_path, reference, kills=8, seed=6, before=before, **more) == 8


# --- at the n-th change of files --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5, 0.97])
def test_killed_at_some_changes_of_files(warm: Warm, tiny: Whole, tmp_path: Path, share: float) -> None:
    counted, folder = tmp_path / "counted", tmp_path / "killed"
    for each in (counted, folder):
        each.mkdir()
    whole = warm(embed(tiny.images, counted / "s.zarr"), Limits(fault=Fault(str(counted), 0, ""))).wait().require(0)
    at = round(share * len(whole.changes))
    assert at > 5, whole.changes
    store, witness = folder / "s.zarr", Witness(tiny.store)
    arguments = embed(tiny.images, store)
    ended = warm(arguments, Limits(fault=Fault(str(folder), at, "SIGKILL"))).wait()
    if len(ended.changes) < at:  # as chance has it, it made fewer
        ended.require(0)
    else:
        ended.require(-9)
    witness.look(store)
    warm(arguments).wait().require(0)
    witness.look(store)
    assert differences(store, tiny.store) == [], ended.changes[-1]
