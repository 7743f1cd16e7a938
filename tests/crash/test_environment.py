"""Disks that are full or cannot be written: a line that says so, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import MORE, Witness, begun, copy, differences, embed
from tests.crash.processes import Ended, Limits, Warm

SHARD = 3 * (8 * 768 * 2 + 4 + 16) + 4  # bytes of a shard of three transformations


# --- full -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_that_cannot_grow(warm: Warm, finished: Whole, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    witness = begun(warm, finished.images, finished.store, store)
    ended = warm(embed(finished.images, store), Limits(file_size=SHARD - 1)).wait()
    ended.require(1, str(store), os.strerror(27))
    witness.look(store)
    warm(embed(finished.images, store)).wait().require(0)
    assert differences(store, finished.store) == []


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes; skips where this process may not mount one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"cannot mount a file system here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
@pytest.mark.parametrize("room", [pytest.param(40_000, marks=pytest.mark.slow), 650_000])
def test_a_full_disk(warm: Warm, finished: Whole, tmp_path: Path, room: int) -> None:
    with small_disk(tmp_path / "disk", 8_000_000) as disk:
        ballast = disk / "ballast"
        free = shutil.disk_usage(disk).free
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - room)
        folder = disk / "stores"
        store = folder / "s.zarr"
        arguments = embed(finished.images, store)
        full(warm(arguments).wait(), folder)
        witness = Witness(finished.store)
        done = witness.look(store)
        assert done > 0 or room < 650_000
        full(warm(arguments).wait(), folder)
        witness.look(store)
        ballast.unlink()
        warm(arguments).wait().require(0)
        witness.look(store)
        assert differences(store, finished.store) == []


def full(ended: Ended, folder: Path) -> None:
    """A run says that the disk is full: when something cannot be written, or before, when embeddings cannot fit."""
    assert ended.code in (1, 2)
    ended.require(ended.code, str(folder), os.strerror(28) if ended.code == 1 else "enough room")


# --- no permission ----------------------------------------------------------------------------------------------------


BOUND = Limits(unprivileged=True)  # by permission bits, which root otherwise passes over


def permit(tree: Path, writing: bool) -> None:
    for path in (tree, *tree.rglob("*")):
        path.chmod((0o755 if writing else 0o555) if path.is_dir() else (0o644 if writing else 0o444))


@pytest.mark.slow
def test_a_store_that_cannot_be_written(warm: Warm, tiny: Whole, tmp_path: Path) -> None:
    store = copy(tiny.store, tmp_path / "stores")
    more = embed(tiny.images, store, suite=MORE)
    permit(store, False)
    ended = warm(more, BOUND).wait().require(2, f"--store: got '{store}'")
    assert ended.answer["error"]["field"] == "--store"
    assert len(ended.said) == 1
    assert differences(store, tiny.store) == []
    # what is complete needs no writing
    assert warm(embed(tiny.images, store), BOUND).wait().require(0).answer["new_shards"] == 0
    permit(store, True)
    assert warm(more, BOUND).wait().require(0).answer["new_shards"] == tiny.shards
