from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from tests.conftest import put
from zarr.storage import ObjectStore

from substyle.engine.store import catalog, compaction, lock, manifest
from substyle.engine.store.catalog import Definition
from substyle.engine.store.files import digest
from substyle.engine.store.layout import (
    SCHEMA,
    BackboneEntry,
    DifferentError,
    StoreError,
    StoreSettings,
)
from substyle.engine.store.records import ImageNote
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, open_tables, store_facts
from substyle.engine.store.verify import verify
from substyle.errors import ConfigError
from substyle.pipelines.storage import LocalPlace, Place

SETTINGS = StoreSettings(seed=0, canvas=224, shard_rows=4, dtype="float16")
DEFINITIONS = [
    {"name": "identity", "kind": "identity", "role": "train", "parameters": []},
    {"name": "jpeg", "kind": "quality", "role": "train", "parameters": []},
]
FOUND = [Definition(definition, ("0" * 16,)) for definition in DEFINITIONS]

OTHER = "timm:other"


def facts(name: str = "timm:x", dim: int = 3, weights: str = "w", precision: str = "fp32") -> dict[str, Any]:
    return {
        "name": name,
        "dim": dim,
        "spec": {"weights_hash": weights, "control": False},
        "runtime": {"name": "openvino", "precision": precision},
        "gate": None,
    }


def note(row: int, reason: str = "", thumbnail: str | None = None, indistinct: tuple[str, ...] = ()) -> ImageNote:
    rng = np.random.default_rng(row)
    small = rng.integers(0, 256, 72, dtype=np.uint8).tobytes().hex() if thumbnail is None else thumbnail
    return ImageNote(row, 10, 10, reason, "" if reason else small, indistinct)


def make(path: Place, images: int = 6, settings: StoreSettings = SETTINGS) -> tuple[EmbeddingStore, BackboneEntry]:
    store = EmbeddingStore.create(path, settings)
    labels = np.arange(images, dtype=np.int64) % 2
    store.add_images([f"{i}.jpg" for i in range(images)], labels, ["cat", "dog"], np.zeros(images, np.int8))
    return store, store.ensure_backbone(facts(), FOUND)


def rows(shard: int, count: int, dim: int = 3) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(shard)
    return {str(d["name"]): rng.normal(size=(count, dim)).astype(np.float32) for d in DEFINITIONS}


def by_zarr(array: Place) -> zarr.Array[Any]:
    """An array as the zarr library reads it."""
    if isinstance(array, LocalPlace):
        return zarr.open_array(str(array), mode="r")
    return zarr.open_array(ObjectStore(array._bucket, read_only=True), path=array.key, mode="r")  # type: ignore[attr-defined]


def test_any_zarr_reader_reads_it_and_missing_is_nan(home: Place) -> None:
    store, entry = make(home / "s.zarr")
    store.write_shard(entry, 1, rows(1, 2), [note(4), note(5)], seconds=1.0, run="r")
    array = by_zarr(store.catalog.array(entry.slug, "jpeg").node(store.path))
    assert (array.shape, array.chunks, array.shards) == ((2, 6, 3), (1, 4, 3), (2, 4, 3))
    assert np.isnan(np.asarray(array[:, :4])).all()
    np.testing.assert_array_equal(array[1, 4:], rows(1, 2)["jpeg"].astype(np.float16))
    np.testing.assert_array_equal(array[1], store.read(entry, "jpeg"))


def test_former_words_of_stores_are_read(tmp_path: Path) -> None:
    store, entry = make(tmp_path / "s.zarr")
    (path,) = (tmp_path / "s.zarr" / catalog.FOLDER).glob("*.json")
    content = json.loads(path.read_text())
    for row in content["transformations"]:
        row["definition"]["coarse"] = row["definition"].pop("kind")
    content["backbone"]["spec"]["finetuned"] = {"objective": "semantic"}
    data = json.dumps(content, sort_keys=True).encode()
    path.unlink()
    path.with_name(f"{entry.slug}-{digest(data)}.json").write_bytes(data)
    before, after = (each.catalog.transformations for each in (store, EmbeddingStore.open(store.path)))
    assert before == after
    assert EmbeddingStore.open(store.path).backbone(entry.name).facts["spec"]["finetuned"] == {"objective": "class"}


def test_what_is_damaged_is_not_kept_as_if_it_were_intact(disk: Place) -> None:
    store, entry = make(disk / "s.zarr")
    notes, given = [note(i) for i in range(4)], rows(0, 4)
    store.write_shard(entry, 0, {"jpeg": given["jpeg"]}, notes, seconds=1.0, run="r")
    path = store.shard_path(entry.slug, "jpeg", 0)
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write(bytes(data))
    store.write_shard(entry, 0, {"identity": given["identity"]}, notes, seconds=1.0, run="r")
    with pytest.raises(StoreError, match=r"a finished transformation is missing; run substyle verify"):
        load_table(store, "timm:x")
    assert np.isnan(store.read(entry, "jpeg", 0, 4)).all()
    with pytest.raises(StoreError, match=r"a finished transformation is missing; run substyle verify"):
        store.read(entry, "jpeg", 0, 4, finished=True)
    with pytest.raises(StoreError, match=r"c\.0\.1\.0: missing; run substyle verify"):
        store.read(entry, "jpeg", 4, 6, finished=True)
    assert [finding.problem for finding in verify(store.path, note=False, quiet=True).damage] == [
        "checksum mismatch: jpeg"
    ]


def test_nothing_finished_is_said(disk: Place) -> None:
    store, _ = make(disk / "s.zarr")
    with pytest.raises(StoreError, match=r"s\.zarr: timm:x: "):
        load_table(store, "timm:x")
    with pytest.raises(StoreError, match=r"timm:y.*: timm:x$"):
        load_table(store, "timm:y")


def test_near_duplicates_move_to_the_split_of_the_first(disk: Place) -> None:
    store = EmbeddingStore.create(disk / "s.zarr", SETTINGS)
    store.add_images(list("abcd"), np.zeros(4, np.int64), ["x"], np.array([0, 2, 2, 1], np.int8))
    entry = store.ensure_backbone(facts(), FOUND)
    same = note(0).thumbnail
    notes = [note(0), note(1), note(2, thumbnail=same), note(3)]
    store.write_shard(entry, 0, rows(0, 4), notes, seconds=1.0, run="r")
    table = load_table(store, "timm:x")
    assert table.split_N.tolist() == [0, 2, 0, 1]
    assert table.groups("photograph").tolist() == [0, 1, 0, 3]
    assert (store_facts(store).moved, store_facts(store).copies) == (("c",), 1)


def test_splits_do_not_depend_on_what_is_finished(disk: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddingStore.create(disk / "s.zarr", SETTINGS)
    store.add_images(list("abcdef"), np.zeros(6, np.int64), ["x"], np.array([0, 2, 2, 1, 2, 2], np.int8))
    entry, other = (store.ensure_backbone(facts(name), FOUND) for name in ("timm:x", "timm:y"))
    notes = [note(row) for row in range(5)] + [note(5, thumbnail=note(0).thumbnail)]
    for shard, own in ((0, notes[:4]), (1, notes[4:])):
        store.write_shard(entry, shard, rows(shard, len(own)), own, seconds=1.0, run="r")
    store.write_shard(other, 1, rows(1, 2), notes[4:], seconds=1.0, run="r")
    part = load_table(store, "timm:y")
    assert (part.keys, part.split_N.tolist(), part.groups("photograph").tolist()) == (("e", "f"), [2, 0], [0, 1])
    for change in (("groups", None), ("groups", manifest.groups)):
        monkeypatch.setattr(manifest, *change)  # kept in the cache, or found again where there can be none
        again = EmbeddingStore.open(store.path)
        assert load_table(again, "timm:x").split_N.tolist() == [0, 2, 2, 1, 2, 0]
        assert store_facts(again).splits == (2, 1, 3)
        (tmp_path / "taken").touch()
        monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "taken" / "cache"))


def test_notes_do_not_depend_on_how_records_are_kept(disk: Place) -> None:
    found = []
    for count, order in enumerate(((0, 1), (1, 0))):
        store = EmbeddingStore.create(disk / f"{count}.zarr", SETTINGS)
        store.add_images(list("ab"), np.zeros(2, np.int64), ["x"], np.zeros(2, np.int8))
        entries = [store.ensure_backbone(facts(name), FOUND) for name in ("timm:x", "timm:y")]
        for i in order:  # passes that saw the same photographs differently
            notes = [note(0, thumbnail=f"{i:02x}" * 72, indistinct=("jpeg",) * i), note(1, reason=f"broken {i}")]
            store.write_shard(entries[i], 0, rows(i, 2), notes, seconds=1.0, run="r")
            if count:
                with lock.mutex(store.path):
                    compaction.compact(store.path)
        found.append(store.notes(store.manifest()))
    one, other = found
    np.testing.assert_array_equal(one.small_NRC, other.small_NRC)
    np.testing.assert_array_equal(one.seen_N, other.seen_N)
    assert one.reasons == other.reasons == {1: "broken 1"}
    assert one.indistinct["jpeg"].tolist() == other.indistinct["jpeg"].tolist() == [True, False]


def test_growth_starts_at_a_shard_and_touches_nothing(home: Place) -> None:
    store, entry = make(home / "s.zarr", images=3)
    store.write_shard(entry, 0, rows(0, 3), [note(i) for i in range(3)], seconds=1.0, run="r")
    chunk = store.shard_path(entry.slug, "jpeg", 0)
    before = chunk.read_bytes()
    store.add_images(["new.jpg"], np.array([2], np.int64), ["cat", "dog", "owl"], np.zeros(1, np.int8))
    assert store.manifest().row_N.tolist() == [0, 1, 2, 4]
    assert chunk.read_bytes() == before
    store.write_shard(entry, 1, rows(1, 1), [note(4)], seconds=1.0, run="r")
    table = load_table(store, "timm:x")
    assert table.keys == ("0.jpg", "1.jpg", "2.jpg", "new.jpg")
    assert table.class_names == ("cat", "dog", "owl")
    np.testing.assert_array_equal(table.x_TND[1][3:], rows(1, 1)["jpeg"].astype(np.float16))


def test_unknown_schema_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing\.zarr: "):
        EmbeddingStore.open(tmp_path / "nothing.zarr")
    zarr.open_group(str(tmp_path / "foreign.zarr"), mode="w")
    with pytest.raises(StoreError, match=r"foreign\.zarr: .*substyle\.json"):
        EmbeddingStore.open(tmp_path / "foreign.zarr")
    store, _ = make(tmp_path / "s.zarr")
    head = store.path / "substyle.json"
    head.write_text(json.dumps({**json.loads(head.read_text()), "schema": 99}))
    with pytest.raises(StoreError, match=rf"s\.zarr: schema 99; .* {SCHEMA}: "):
        EmbeddingStore.open(tmp_path / "s.zarr")


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_store_needs_a_name(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EmbeddingStore.create(Path(path), SETTINGS)
    assert (caught.value.field, caught.value.given) == ("store", str(Path(path)))


def test_what_is_written_is_read(home: Place) -> None:
    store, entry = make(home / "s.zarr")
    first, second = rows(0, 4), rows(1, 2)
    store.write_shard(entry, 0, first, [note(i) for i in range(4)], seconds=1.0, run="r")
    store.write_shard(entry, 1, second, [note(4), note(5)], seconds=1.0, run="r")
    opened = EmbeddingStore.open(home / "s.zarr")
    table = load_table(opened, "timm:x")
    assert table.x_TND.dtype == np.float16
    expected = np.concatenate([first["jpeg"], second["jpeg"]]).astype(np.float16)
    np.testing.assert_array_equal(table.x_TND[1], expected)
    assert table.transformations == ("identity", "jpeg")
    assert table.class_names == ("cat", "dog")
    assert table.keys == tuple(f"{i}.jpg" for i in range(6))


def test_a_shard_is_completed_and_keeps_what_it_has(home: Place) -> None:
    """A run may ask for some transformations of an array, and a later one for the others."""
    store, entry = make(home / "s.zarr")
    notes, given = [note(i) for i in range(4)], rows(0, 4)
    for name in ("jpeg", "identity"):
        store.write_shard(entry, 0, {name: given[name]}, notes, seconds=1.0, run="r")
        read = store.read(entry, name, 0, 4)
        np.testing.assert_array_equal(read, given[name].astype(np.float16))
        assert verify(store.path, note=False, quiet=True).ok
    np.testing.assert_array_equal(load_table(store, "timm:x").x_TND[1], given["jpeg"].astype(np.float16))
    whole, _ = make(home / "t.zarr")
    whole.write_shard(entry, 0, given, notes, seconds=1.0, run="r")
    paths = [each.shard_path(entry.slug, "jpeg", 0) for each in (store, whole)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(names for _, _, names in store.finished().records()) == [("identity",), ("jpeg",)]
    assert store.stored_bytes(entry, ["identity", "jpeg"]) == whole.stored_bytes(entry, ["identity", "jpeg"])


def test_transformations_added_later_are_an_array_of_their_own(disk: Place) -> None:
    store, entry = make(disk / "s.zarr")
    store.write_shard(entry, 0, rows(0, 4), [note(i) for i in range(4)], seconds=1.0, run="r")
    before = store.shard_path(entry.slug, "jpeg", 0).read_bytes()
    swirl = Definition({"name": "swirl", "kind": "warp", "role": "held_out"}, ("0" * 16,))
    store.ensure_backbone(facts(), [*FOUND, swirl])
    assert [array.transformations for array in store.catalog.arrays[entry.slug]] == [("identity", "jpeg"), ("swirl",)]
    with pytest.raises(StoreError, match="no finished shard"):
        load_table(store, "timm:x", ["identity", "swirl"])
    x_RD = rows(5, 4)["jpeg"]
    store.write_shard(entry, 0, {"swirl": x_RD}, [note(i) for i in range(4)], seconds=1.0, run="r")
    table = load_table(store, "timm:x", ["swirl", "identity", "jpeg"])
    np.testing.assert_array_equal(table.x_TND[0], x_RD.astype(np.float16))
    np.testing.assert_array_equal(table.x_TND[1:], load_table(store, "timm:x", ["identity", "jpeg"]).x_TND)
    t_B, n_B = np.array([0, 2, 1, 0]), np.array([3, 0, 1, 0])
    np.testing.assert_array_equal(
        open_tables(store, ["timm:x"], table.transformations)[0].take(t_B, n_B), table.x_TND[t_B, n_B]
    )
    assert store.shard_path(entry.slug, "jpeg", 0).read_bytes() == before


def test_another_definition_is_refused(disk: Place) -> None:
    store, _ = make(disk / "s.zarr")
    other_role = Definition({**DEFINITIONS[1], "role": "held_out"}, ("0" * 16,))
    other_values = Definition({**DEFINITIONS[1], "parameters": [1]})
    for changed in (Definition(DEFINITIONS[1], ("1" * 16,)), other_role, other_values):
        for name in ("timm:x", "timm:y"):  # of another backbone too: a report sets them side by side
            with pytest.raises(DifferentError, match=r"s\.zarr: .* jpeg "):
                store.ensure_backbone(facts(name), [FOUND[0], changed])
    assert [entry.name for entry in store.backbones()] == ["timm:x"]


def test_tables_of_several_backbones_are_of_the_same_photographs(disk: Place) -> None:
    store, entry = make(disk / "s.zarr")
    other = store.ensure_backbone(facts("timm:y"), FOUND)
    for shard, count in ((0, 4), (1, 2)):
        notes = [note(4 * shard + i) for i in range(count)]
        store.write_shard(entry, shard, rows(shard, count), notes, seconds=1.0, run="r")
        if shard == 0:
            store.write_shard(other, shard, rows(shard, count), notes, seconds=1.0, run="r")
    assert len(load_table(store, "timm:x").keys) == 6
    both = open_tables(store, ["timm:x", "timm:y"])
    assert [table.keys for table in both] == [tuple(f"{i}.jpg" for i in range(4))] * 2
    some = load_table(store, "timm:x", ["jpeg"])
    assert some.transformations == ("jpeg",)
    np.testing.assert_array_equal(some.x_TND[0], load_table(store, "timm:x").x_TND[1])
    with pytest.raises(StoreError, match=r"timm:x .* swirl; run substyle embed"):
        load_table(store, "timm:x", ["jpeg", "swirl"])


def test_a_row_that_one_pass_could_not_read_is_left_out_whatever_the_backbones_are_called(disk: Place) -> None:
    store, entry = make(disk / "s.zarr")
    other = store.ensure_backbone(facts("timm:z"), FOUND)
    store.write_shard(entry, 0, rows(0, 4), [note(0), note(1, "gone"), note(2), note(3)], seconds=1.0, run="r")
    store.write_shard(other, 0, rows(0, 4), [note(i) for i in range(4)], seconds=1.0, run="r")
    for name in ("timm:x", "timm:z"):
        assert load_table(store, name).keys == ("0.jpg", "2.jpg", "3.jpg")
    assert store_facts(store).quarantined == {"1.jpg": "gone"}


def test_a_catalog_that_is_gone_brings_no_other_network(disk: Place) -> None:
    store, entry = make(disk / "s.zarr")
    store.write_shard(entry, 0, rows(0, 4), [note(i) for i in range(4)], seconds=1.0, run="r")
    for path in (store.path / "catalog").files(".json"):
        path.remove()
    with pytest.raises(StoreError, match=r"catalog of timm:x is missing; run substyle verify"):
        EmbeddingStore.open(store.path).ensure_backbone(facts(weights="other"), FOUND)


@pytest.mark.parametrize("change", [{"seed": 1}, {"canvas": 228}, {"dtype": "float32"}])
def test_a_header_that_was_changed_is_refused(disk: Place, change: dict[str, Any]) -> None:
    store, _ = make(disk / "s.zarr")
    head = json.loads((store.path / "substyle.json").read_bytes())
    head["settings"] |= change
    put(store.path / "substyle.json", json.dumps(head).encode())
    with pytest.raises(StoreError, match=r"substyle\.json: checksum"):
        EmbeddingStore.open(store.path)


def test_the_lowest_cosine_of_all_runs_is_kept(tmp_path: Path) -> None:
    """In whatever order files of the catalog are read, with new transformations or only new photographs."""
    store, _ = make(LocalPlace(tmp_path, "s.zarr"))
    least = 1.0
    for i, (cosine, spot) in enumerate([(0.9995, 0.9999), (0.9991, 0.51), (0.9999, 0.9998), (0.5, 0.9999)]):
        found = [*FOUND, *(Definition({**DEFINITIONS[-1], "name": f"new_{n}"}, ("0" * 16,)) for n in range(i // 2))]
        gate = {"cosine_min": cosine, "threshold": 0.5, "configured": True, "spot": {"cosine_min": spot}}
        store.ensure_backbone({**facts(OTHER), "gate": gate}, found)
        least = min(least, cosine, spot)
        opened = EmbeddingStore.open(store.path).backbone(OTHER)
        assert catalog.lowest_cosine(opened.facts) == least
