"""Runs that are killed: what was finished stays, and the store ends like one that no run was ever killed on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.crash.conftest import Whole, photographs, whole
from tests.crash.harness import COMPILED, PIXELS, STATISTICS, SUITE, Witness, copy, differences, embed, uninterrupted
from tests.crash.moments import after, fill, upon
from tests.crash.processes import Start, Warm, cold


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
    assert many_kills(warm, tmp_path, finished, kills=3, seed=1) == 3


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
    "backbones", [(PIXELS, STATISTICS), (COMPILED,), (PIXELS, COMPILED)], ids=["two", "compiled", "compiled and not"]
)
def test_killed_with_several_backbones(warm: Warm, finished: Whole, tmp_path: Path, backbones: Sequence[str]) -> None:
    store = tmp_path / "whole" / "s.zarr"
    _, seconds = uninterrupted(warm, embed(finished.images, store, backbones=backbones))
    reference = Whole(finished.images, store, seconds, finished.shards)
    assert many_kills(warm, tmp_path, reference, kills=8, seed=5, backbones=backbones) == 8


@pytest.mark.slow
def test_killed_while_a_backbone_is_added(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    both = (PIXELS, STATISTICS)
    store = copy(finished.store, tmp_path / "whole")
    _, seconds = uninterrupted(warm, embed(finished.images, store, backbones=both))
    reference = Whole(finished.images, store, seconds, finished.shards)
    assert many_kills(warm, tmp_path, reference, kills=8, seed=6, backbones=both, before=finished.store) == 8


@pytest.mark.slow
def test_killed_while_images_are_appended(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    part = tmp_path / "part" / "s.zarr"
    warm(embed(finished.images, part, "--set", "limit=36")).wait().require(0)
    store = copy(part, tmp_path / "whole")
    _, seconds = uninterrupted(warm, embed(finished.images, store))
    reference = Whole(finished.images, store, seconds, finished.shards)
    assert many_kills(warm, tmp_path, reference, kills=10, seed=7, before=part) == 10


@pytest.mark.slow
def test_killed_while_a_transformation_is_added(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    more = f"{SUITE},gaussian_blur,jpeg"
    store = copy(finished.store, tmp_path / "whole")
    _, seconds = uninterrupted(warm, embed(finished.images, store, suite=more))
    reference = Whole(finished.images, store, seconds, finished.shards)
    assert many_kills(warm, tmp_path, reference, kills=10, seed=8, suite=more, before=finished.store) == 10
