from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.engine.store.test_embeddings import DEFINITIONS, facts, make, note, rows

from substyle.engine.store import compaction, journal, lock, manifest
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import StoreError
from substyle.engine.store.load import load_table
from substyle.engine.store.verify import Verdict, verify

OTHER = "timm:y"


def finished(path: Path) -> EmbeddingStore:
    """6 images in shards of 4 rows, two backbones, all done; half of the journal is compacted."""
    store, _ = make(path)
    store.ensure_backbone(facts(OTHER))
    for entry in store.backbones():
        for definition in DEFINITIONS:
            store.ensure_transformation(entry, definition, "hash")
    for shard in (0, 1):
        redo(store, shard)
        if shard == 0:
            compaction.compact(path, at=1)
    return store


def finished_of(store: EmbeddingStore) -> dict[tuple[int, str], set[str]]:
    """Finished transformations by (shard, slug of the backbone)."""
    done: dict[tuple[int, str], set[str]] = {}
    for shard, slug, name in store.finished().chunks():
        done.setdefault((shard, slug), set()).add(name)
    return done


def redo(store: EmbeddingStore, shard: int) -> list[tuple[int, str, str]]:
    """Do what embed does: write what has no record."""
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


def look(path: Path) -> Verdict:
    return verify(path, mark=False, quiet=True)


def test_a_sound_store(tmp_path: Path) -> None:
    finished(tmp_path / "s.zarr")
    verdict = verify(tmp_path / "s.zarr", quiet=True)
    assert verdict.ok
    assert not verdict.marked
    assert (verdict.images, verdict.records, verdict.chunks, verdict.chunk_bytes) == (6, 4, 8, 8 * 4 * 3 * 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _swap(path: Path) -> None:
    other = path.parents[3] / "identity" / "c" / path.parent.name / "0"
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


@pytest.mark.parametrize(
    ("damage", "broken"), [(_flip, 1), (_cut, 1), (_swap, 2), (Path.unlink, 1), (lambda p: p.write_bytes(b""), 1)]
)
@pytest.mark.parametrize("shard", [0, 1])
def test_damaged_chunks_are_found_and_only_they_are_redone(
    tmp_path: Path, damage: Callable[[Path], None], broken: int, shard: int
) -> None:
    store = finished(tmp_path / "s.zarr")
    whole = {p: p.read_bytes() for p in sorted(store.path.rglob("c/*/0"))}
    entry = store.backbone("timm:x")
    damage(store.chunk_path(entry.slug, "jpeg", shard))
    assert len(look(store.path).findings) == broken
    assert len(store.finished()) == 4  # looking changes nothing
    verdict = verify(store.path, quiet=True)
    assert [finding.kind for finding in verdict.findings] == ["chunk"] * broken
    assert verdict.marked
    made = redo(store, 0) + redo(store, 1)
    assert len(made) == broken
    assert {(s, name) for s, name, _ in made} == {(shard, "timm:x")}
    assert {p: p.read_bytes() for p in sorted(store.path.rglob("c/*/0"))} == whole
    assert look(store.path).ok


def test_chunks_of_another_store_are_found(tmp_path: Path) -> None:
    store = finished(tmp_path / "s.zarr")
    entry = store.backbone("timm:x")
    chunk = store.chunk_path(entry.slug, "jpeg", 0)
    chunk.write_bytes(np.ones((4, 3), np.float16).tobytes())
    (chunk.parents[1] / "7").mkdir()
    (chunk.parents[1] / "7" / "0").write_bytes(b"beyond the last shard")
    (store.path / "notes.txt").write_text("not ours")
    verdict = look(store.path)
    assert sorted((f.kind, f.path.split("/")[-2:][0]) for f in verdict.findings) == [
        ("chunk", "0"),
        ("foreign", "7"),
        ("foreign", "notes.txt"),
    ]


def test_files_of_an_interrupted_run_are_no_damage(tmp_path: Path) -> None:
    store, entry = make(tmp_path / "s.zarr")
    store.write_shard(entry, 0, rows(0, 4), [note(i) for i in range(4)], seconds=1.0, run="r")
    chunk = store.chunk_path(entry.slug, "jpeg", 1)
    chunk.parent.mkdir()
    chunk.write_bytes(b"half")
    chunk.with_name("0.abc.partial").write_bytes(b"half")
    verdict = look(store.path)
    assert verdict.ok
    assert verdict.unfinished == 2


@pytest.mark.parametrize("kind", ["*.json", "*.parquet"])
@pytest.mark.parametrize("damage", [_flip, _cut])
def test_what_a_damaged_file_of_the_journal_tells_of_is_redone(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    store = finished(tmp_path / "s.zarr")
    path = sorted((store.path / journal.FOLDER).glob(kind))[0]
    damage(path)
    with pytest.raises(StoreError, match="run substyle verify"):
        load_table(store, "timm:x")
    verdict = verify(store.path, quiet=True)
    assert [f.kind for f in verdict.findings] == ["journal"]
    made = redo(store, 0) + redo(store, 1)
    assert {shard for shard, _, _ in made} == {0 if kind == "*.parquet" else 1}
    assert len(made) == (4 if kind == "*.parquet" else 2)
    assert look(store.path).ok


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"zarr_format": 3, "node_type": "group"}'])
@pytest.mark.parametrize("place", ["jpeg/zarr.json", "zarr.json"])
def test_damaged_metadata_are_found_and_made_again(tmp_path: Path, text: str, place: str) -> None:
    store = finished(tmp_path / "s.zarr")
    slug = store.backbone("timm:x").slug
    (store.path / "embeddings" / slug / place).write_text(text)
    verdict = verify(store.path, quiet=True)
    assert verdict.findings[0].kind == "metadata"
    assert verdict.marked
    again = EmbeddingStore.open(store.path, writable=True)
    entry = again.ensure_backbone(facts())
    for definition in DEFINITIONS:
        again.ensure_transformation(entry, definition, "hash")
    made = redo(again, 0) + redo(again, 1)
    assert {name for _, _, name in made} == ({"jpeg"} if place != "zarr.json" else {"identity", "jpeg"})
    assert {backbone for _, backbone, _ in made} == {"timm:x"}
    assert look(store.path).ok
    np.testing.assert_array_equal(load_table(again, "timm:x").x_TND, load_table(again, OTHER).x_TND)


@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink])
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = finished(tmp_path / "s.zarr")
    store.add_images(["new.jpg"], np.array([0]), ["cat", "dog"], np.zeros(1, np.int8))
    damage(sorted((store.path / manifest.FOLDER).iterdir())[0])
    verdict = verify(store.path, quiet=True)
    assert [f.kind for f in verdict.findings] == ["manifest"]
    assert "put back a copy" in verdict.findings[0].remedy
    assert not verdict.marked


def test_records_of_other_rows_are_found(tmp_path: Path) -> None:
    store = finished(tmp_path / "s.zarr")
    shutil.rmtree(store.path / journal.FOLDER)
    entry = store.backbone("timm:x")
    store.write_shard(entry, 0, rows(0, 4), [note(i) for i in range(3)], seconds=1.0, run="r")
    verdict = look(store.path)
    assert [f.problem for f in verdict.findings] == ["speaks of other rows than the manifest"]


def test_while_a_run_goes_on_nothing_is_marked(tmp_path: Path) -> None:
    store = finished(tmp_path / "s.zarr")
    store.chunk_path(store.backbone("timm:x").slug, "jpeg", 0).unlink()
    with lock.hold(store.path, "busy"):
        verdict = verify(store.path, quiet=True)
    assert not verdict.marked
    assert "run busy" in verdict.unmarked_because
    assert len(finished_of(store)[0, store.backbone("timm:x").slug]) == 2


@pytest.mark.parametrize("damage", [Path.unlink, _cut])
def test_readers_refuse_chunks_that_are_cut_short(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = finished(tmp_path / "s.zarr")
    damage(store.chunk_path(store.backbone("timm:x").slug, "jpeg", 1))
    with pytest.raises(StoreError, match=r"missing or cut short.*run substyle verify"):
        load_table(store, "timm:x")
    assert len(load_table(store, OTHER).keys) == 6


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store is there"):
        verify(tmp_path / "nothing.zarr", quiet=True)
    store = finished(tmp_path / "s.zarr")
    (store.path / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"zarr\.json: cannot be read"):
        verify(store.path, quiet=True)
