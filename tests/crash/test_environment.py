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
from tests.crash.harness import MORE, Witness, copy, differences, embed
from tests.crash.moments import begun
from tests.crash.processes import Ended, Fault, Limits, Warm

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


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 100, 300, 700, 1500, 3000, 6000, SHARD - 1])
def test_a_new_store_of_files_that_cannot_grow(warm: Warm, finished: Whole, tmp_path: Path, size: int) -> None:
    store = tmp_path / "s.zarr"
    ended = warm(embed(finished.images, store), Limits(file_size=size)).wait()
    if size < len(b"substyle"):  # what is written to see whether folders can be written to
        ended.require(2, os.strerror(27))
    else:
        ended.require(1, str(store), os.strerror(27))
    Witness(finished.store).look(store)
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
@pytest.mark.parametrize(
    "room",
    [pytest.param(n, marks=[] if n == 650_000 else pytest.mark.slow) for n in (4_096, 40_000, 90_000, 650_000)],
)
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


def fails_at(warm: Warm, folder: Path, reference: Whole, at: int, error: str) -> None:
    """A run that meets an error of the disk at its ``at``-th change says so; the next one ends like the reference."""
    folder.mkdir()
    store = folder / "s.zarr"
    arguments = embed(reference.images, store)
    ended = warm(arguments, Limits(fault=Fault(str(folder), at, error))).wait()
    point = ended.changes[at - 1] if len(ended.changes) >= at else "no change"
    try:
        if ended.code != 0:  # what is merely removed or tidied may fail in silence
            assert ended.code in (1, 2), point  # 2 where it is seen before anything is done
            ended.require(ended.code, str(folder))
        witness = Witness(reference.store)
        witness.look(store)
        assert not list(store.glob("lock*")), "the lock was left behind"
        warm(arguments).wait().require(0)
        witness.look(store)
        assert differences(store, reference.store) == []
    except AssertionError as failure:
        raise AssertionError(f"{error} at {point}: {failure}") from failure


def count(warm: Warm, reference: Whole, folder: Path) -> int:
    """How many changes a run on a new store makes."""
    folder.mkdir()
    return len(warm(embed(reference.images, folder / "s.zarr"), Limits(fault=Fault(str(folder), 0, ""))).wait().changes)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "error"), [(0.1, "ENOSPC"), (0.6, "EIO")])
def test_errors_at_some_changes_of_files(warm: Warm, tiny: Whole, tmp_path: Path, share: float, error: str) -> None:
    fails_at(warm, tmp_path / "failed", tiny, round(share * count(warm, tiny, tmp_path / "counted")), error)


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EROFS"])
def test_errors_at_every_change_of_files(warm: Warm, tiny: Whole, tmp_path: Path, error: str) -> None:
    total, failures = count(warm, tiny, tmp_path / "counted"), []
    for at in range(1 if error == "ENOSPC" else 2, total + 1, 2):
        try:
            fails_at(warm, tmp_path / f"{at}", tiny, at, error)
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, f"{len(failures)} of {total} points failed:\n" + "\n\n".join(failures)


# --- no permission ----------------------------------------------------------------------------------------------------


BOUND = Limits(unprivileged=True)  # by permission bits, which root otherwise passes over


def permit(tree: Path, writing: bool) -> None:
    """Allow or forbid writing to a tree's folders and files."""
    for path in (tree, *tree.rglob("*")):
        path.chmod((0o755 if writing else 0o555) if path.is_dir() else (0o644 if writing else 0o444))


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(warm: Warm, tiny: Whole, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for store in (closed / "s.zarr", closed / "deeper" / "s.zarr"):
        warm(embed(tiny.images, store), BOUND).wait().require(2, str(closed), os.strerror(13))
        assert list(closed.iterdir()) == []


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_disk_that_is_mounted_read_only(warm: Warm, tiny: Whole, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8_000_000) as disk:
        store = copy(tiny.store, disk / "stores")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert warm(embed(tiny.images, store)).wait().require(0).answer["new_shards"] == 0
        more = embed(tiny.images, store, suite=MORE)
        warm(more).wait().require(2, f"--store: got '{store}'")
        warm(embed(tiny.images, disk / "new" / "s.zarr")).wait().require(2, str(disk / "new"), os.strerror(30))
        assert differences(store, tiny.store) == []


@pytest.mark.slow
def test_paths_where_no_store_can_be(warm: Warm, tiny: Whole, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine too")
    for path, named in ((file, file), (file / "s.zarr", file), (other, other)):
        ended = warm(embed(tiny.images, path)).wait()
        assert ended.code in (1, 2)
        ended.require(ended.code, str(named))
        assert len(ended.said) == 1
    assert file.read_text() == "mine"
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]
    empty = tmp_path / "empty" / "s.zarr"
    empty.mkdir(parents=True)
    warm(embed(tiny.images, empty)).wait().require(0)
    assert differences(empty, tiny.store) == []
