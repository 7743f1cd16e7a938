"""Photographs, a warm process and uninterrupted stores that the crash tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import jpeg, photograph
from tests.crash.harness import embed, uninterrupted
from tests.crash.processes import Warm, warm_start
from tests.object_server import Server

SHARDS = 12

# a shell that starts tests in the background has them ignore Ctrl-C, and so would every process they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Whole:
    """A store that was never interrupted: its photographs, where it is, seconds it took, its shards and their rows."""

    images: Path
    store: Path
    seconds: float
    shards: int
    rows: int = 8


@pytest.fixture(scope="session")
def warm(private_cache: Path, _server: Server) -> Iterator[Warm]:
    """Starts runs without waiting for their imports; they reach the server of buckets."""
    del private_cache, _server  # they set the environment that the process inherits
    with warm_start() as start:
        yield start


def photographs(folder: Path, count: int, first: int = 0) -> Path:
    for i in range(first, first + count):
        path = folder / ("even" if i % 2 == 0 else "odd") / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(i, 72, 64)))
    return folder


def whole(start: Warm, root: Path, images: Path, *more: str, rows: int = 8) -> Whole:
    store = root / "s.zarr"
    ended, seconds = uninterrupted(start, embed(images, store, *more, rows=rows))
    return Whole(images, store, seconds, int(ended.answer["shards"]), rows)


@pytest.fixture(scope="session")
def finished(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An uninterrupted store of 12 shards of 8 photographs."""
    images = photographs(tmp_path_factory.mktemp("photographs"), 8 * SHARDS)
    return whole(warm, tmp_path_factory.mktemp("whole"), images)


@pytest.fixture(scope="session")
def tiny(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An uninterrupted store of 2 shards, the second one half full."""
    images = photographs(tmp_path_factory.mktemp("few"), 12)
    return whole(warm, tmp_path_factory.mktemp("tiny"), images)
