from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from tests.conftest import put, slow_after
from tests.engine.store.test_store import DEFINITIONS, FOUND, facts, make, note, rows

from substyle.engine.store import compaction, journal, manifest, shards
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.store.verify import Verdict, verify
from substyle.pipelines.storage import LocalPlace, Place

OTHER = "timm:y"


def filled(path: Place) -> EmbeddingStore:
    """6 images in shards of 4 rows, two backbones, all done; half of the journal is compacted."""
    store, _ = make(path)
    store.ensure_backbone(facts(OTHER), FOUND)
    for shard in (0, 1):
        redo(store, shard)
        if shard == 0:
            compaction.compact(path, at=1)
    return store


@cache
def _files() -> dict[str, bytes]:
    """Files of a store that `filled` has made."""
    with TemporaryDirectory() as folder:
        root = filled(LocalPlace(folder, "s.zarr")).path
        assert isinstance(root, Path)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def finished(path: Place) -> EmbeddingStore:
    """A copy of the store that `filled` makes."""
    for name, data in _files().items():
        put(path / name, data)
    return EmbeddingStore.open(path)


def finished_of(store: EmbeddingStore) -> dict[tuple[int, str], set[str]]:
    """Finished transformations by (shard, slug of the backbone)."""
    done: dict[tuple[int, str], set[str]] = {}
    for shard, slug, names in store.finished().records():
        done.setdefault((shard, slug), set()).update(names)
    return done


def redo(store: EmbeddingStore, shard: int) -> list[tuple[int, str, str]]:
    """Do what embed does: repair, then write what has no record."""
    store.repair()
    store.resize_arrays()
    done = finished_of(store)
    made = []
    for entry in store.backbones():
        lacking = {str(d["name"]) for d in DEFINITIONS} - done.get((shard, entry.slug), set())
        written = {name: x for name, x in rows(shard, 4 if shard == 0 else 2).items() if name in lacking}
        notes = [note(row) for row in (range(4) if shard == 0 else (4, 5))]
        if written:
            store.write_shard(entry, shard, written, notes, seconds=1.0, run="r")
            made += [(shard, entry.name, name) for name in sorted(written)]
    return made


def look(path: Place) -> Verdict:
    return verify(path, note=False, quiet=True)


def both(*cases: object, marks: Sequence[pytest.MarkDecorator] = (pytest.mark.slow,)) -> list[Any]:
    """Every case on a disk, and the first in a bucket: of the same bytes the same is found."""
    each = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [*(("disk", *case) for case in each), pytest.param("bucket", *each[0], marks=marks)]


def _flip(path: Place) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    put(path, bytes(data))


def _cut(path: Place) -> None:
    put(path, path.read_bytes()[:-1])


def _swap(path: Place) -> None:
    """Swap the chunks, and leave their checksums and the index right."""
    data = path.read_bytes()
    put(path, data[28:56] + data[:28] + data[56:])


def _exchange(path: Place) -> None:
    """Exchange the files of two shards."""
    other = path.parent / f"c.0.{1 - int(path.name.split('.')[2])}.0"
    a, b = path.read_bytes(), other.read_bytes()
    put(path, b)
    put(other, a)


def _empty(path: Place) -> None:
    put(path, b"")


def _unlink(path: Place) -> None:
    path.remove()


def _chunks(store: EmbeddingStore) -> dict[Place, bytes]:
    return {p: p.read_bytes() for p in sorted(store.path.glob("embeddings/*/*/c.0.*.0"))}


@pytest.mark.parametrize(
    ("home", "damage", "broken"),
    both((_flip, 1), (_cut, 1), (_swap, 1), (_exchange, 2), (_unlink, 1), (_empty, 1), marks=()),
    indirect=["home"],
)
@pytest.mark.parametrize("shard", slow_after(1, [0, 1]))
def test_damaged_shards_are_found_and_only_they_are_redone(
    home: Place, damage: Callable[[Place], None], broken: int, shard: int
) -> None:
    store = finished(home / "s.zarr")
    whole = _chunks(store)
    entry = store.backbone("timm:x")
    damage(store.shard_path(entry.slug, "jpeg", shard))
    assert len(look(store.path).findings) == broken
    assert len(store.finished()) == 4  # looking changes nothing
    verdict = verify(store.path, quiet=True)
    assert [finding.kind for finding in verdict.findings] == ["shard"] * broken
    assert verdict.noted
    again = verify(store.path, quiet=True)
    assert again == verdict
    assert again.pending == 2 * (6 if broken == 2 else 4 if shard == 0 else 2)
    with pytest.raises(StoreError, match=f"{store.path}: .*{compaction.NAME}.* run embed"):
        load_table(store, "timm:x")
    made = redo(store, 0) + redo(store, 1)
    shards = {0, 1} if broken == 2 else {shard}
    assert sorted(made) == [(s, "timm:x", name) for s in sorted(shards) for name in ("identity", "jpeg")]
    assert _chunks(store) == whole
    assert look(store.path).ok


def test_chunks_of_another_store_are_found(disk: Place) -> None:
    store = finished(disk / "s.zarr")
    entry = store.backbone("timm:x")
    chunk = store.shard_path(entry.slug, "jpeg", 0)
    put(
        chunk,
        b"".join(
            shards.encode([np.ones((4, 3), np.float16)] * 2, store.shape(store.catalog.array(entry.slug, "jpeg")))
        ),
    )
    put(chunk.parent / "c.0.7.0", b"beyond the last shard")
    put(store.path / "notes.txt", b"not ours")
    verdict = look(store.path)
    assert sorted((f.kind, f.path.split("/")[-1]) for f in verdict.findings) == [
        ("addition", "c.0.7.0"),
        ("addition", "notes.txt"),
        ("shard", "c.0.0.0"),
    ]


@pytest.mark.parametrize(("home", "damage"), both(_flip, _cut, _unlink), indirect=["home"])
def test_a_damaged_manifest_is_named(home: Place, damage: Callable[[Place], None]) -> None:
    store = finished(home / "s.zarr")
    store.add_images(["new.jpg"], np.array([0]), ["cat", "dog"], np.zeros(1, np.int8))
    damage(sorted((store.path / manifest.FOLDER).glob("*"))[0])
    verdict = verify(store.path, quiet=True)
    assert [f.kind for f in verdict.findings] == ["manifest"]
    assert "restore it from a copy" in verdict.findings[0].remedy
    assert not verdict.noted


def test_records_of_other_rows_are_found(tmp_path: Path) -> None:
    store = finished(LocalPlace(tmp_path, "s.zarr"))
    shutil.rmtree(store.path / journal.FOLDER)
    entry = store.backbone("timm:x")
    store.write_shard(entry, 0, rows(0, 4), [note(i) for i in range(3)], seconds=1.0, run="r")
    verdict = look(store.path)
    assert [(f.kind, f.path) for f in verdict.findings] == [("journal", f"shard 0, {entry.slug}")]


@pytest.mark.parametrize(("home", "damage"), both(_unlink, _cut), indirect=["home"])
def test_readers_refuse_chunks_that_are_cut_short(home: Place, damage: Callable[[Place], None]) -> None:
    store = finished(home / "s.zarr")
    damage(store.shard_path(store.backbone("timm:x").slug, "jpeg", 1))
    with pytest.raises(StoreError, match=r"c\.0\.1\.0: .*run substyle verify"):
        load_table(store, "timm:x")
    assert len(load_table(store, OTHER).keys) == 6


def test_a_note_of_damage_goes_once_a_copy_was_restored(disk: Place) -> None:
    store = finished(disk / "s.zarr")
    chunk = store.shard_path(store.backbone("timm:x").slug, "jpeg", 0)
    data = chunk.read_bytes()
    _flip(chunk)
    assert verify(store.path, quiet=True).noted
    put(chunk, data)
    assert verify(store.path, quiet=True).ok
    assert len(load_table(store, "timm:x").keys) == 6
