"""Stores that somebody else has made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.security.conftest import Outside

from substyle.engine.cli import main
from substyle.engine.store import catalog, compaction, identity, lock, manifest
from substyle.engine.store.files import digest, encoded
from substyle.engine.store.layout import HEADER, StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.store.verify import verify
from substyle.engine.study import outputs
from substyle.errors import SubstyleError
from substyle.pipelines.sources import open_source


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- the note of damage -----------------------------------------------------------------------------------------------

NAMES = (
    *("{outside}", "{outside}/folder", "{outside}/secret.json", "../outside", "../outside/secret.json"),
    *("catalog/../../outside/secret.json", "journal/../../outside/secret.json", "catalog/../manifest", "journal"),
    *("journal/tables", "catalog", "manifest", "embeddings", ".", "..", "", "zarr.json/..", "substyle.json"),
    *("embeddings/../../zarr.json", "catalog/\0.json", "catalog/a\\..\\b.json"),
)


@pytest.mark.parametrize("kind", ["files", "metadata"])
def test_a_note_of_damage_names_files_of_the_store_alone(foreign: Path, outside: Outside, kind: str) -> None:
    for name in NAMES:
        note = {"chunks": [], "files": [], "metadata": [], kind: [name.format(outside=outside.path)]}
        (foreign / compaction.NAME).write_text(json.dumps(note))
        before = contents(foreign)
        with pytest.raises(StoreError, match=r"damage\.json: invalid file"):
            EmbeddingStore.open(foreign).repair()
        assert contents(foreign) == before, name


def test_a_note_of_damage_may_not_remove_folders(foreign: Path) -> None:
    (foreign / "catalog" / "x.json").mkdir()
    (foreign / "catalog" / "x.json" / "mine").touch()
    good = next((foreign / "catalog").glob("*.json")).name
    note = {"chunks": [], "files": [f"catalog/{good}", "catalog/x.json"], "metadata": []}
    (foreign / compaction.NAME).write_text(json.dumps(note))
    before = contents(foreign)
    with pytest.raises(StoreError, match="but a folder"):
        EmbeddingStore.open(foreign).repair()
    assert contents(foreign) == before


# --- links ------------------------------------------------------------------------------------------------------------

SHARD = "embeddings/{slug}/{array}/c.0.0.0"
PARTS = (
    *(".mutex", "lock.json", "substyle.json", "zarr.json", "damage.json", "manifest", "journal", "journal/tables"),
    *("catalog", "embeddings", "embeddings/{slug}", "embeddings/{slug}/{array}"),
    *("embeddings/{slug}/zarr.json", "embeddings/{slug}/{array}/zarr.json", SHARD),
)


def linked(store: Path, part: str, outside: Outside) -> Path:
    """Replace a part of a store by a link that leads out of it; the target has what the store had, and more."""
    array = next(iter(EmbeddingStore.open(store).catalog.arrays.values()))[0]
    path = store / part.format(slug=array.slug, array=array.name)
    target = outside.path.parent / "target"
    if path.exists():
        path.rename(target)
    path.symlink_to(target)
    return path


@pytest.mark.parametrize("part", PARTS)
def test_a_link_in_a_store_is_refused(foreign: Path, outside: Outside, part: str) -> None:
    path = linked(foreign, part, outside)
    for act in (EmbeddingStore.open, lambda store: verify(store, quiet=True)):
        with pytest.raises(StoreError, match="symbolic link"):
            act(foreign)
    assert path.is_symlink()


def test_a_linked_shard_is_neither_read_nor_followed(foreign: Path, outside: Outside) -> None:
    """Of a store that was open before."""
    store = EmbeddingStore.open(foreign)
    path = linked(foreign, SHARD, outside)
    kept = path.read_bytes()
    (entry,) = (each for each in store.backbones() if each.slug == path.parent.parent.name)
    with pytest.raises(StoreError, match=r"run substyle verify"):
        load_table(store, entry.name)
    with pytest.raises(StoreError, match="symbolic link"):
        store.read(entry, "jpeg")
    rows_RD = np.zeros((store.settings.shard_rows, entry.dim), np.float32)
    store.write_shard(entry, 0, {"identity": rows_RD, "jpeg": rows_RD}, [], seconds=0.0, run="r")
    assert (outside.path.parent / "target").read_bytes() == kept
    assert not path.is_symlink()


# --- names in catalog and journal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../../outside", "a/b", "..", "", "/x", "a\\b", "a\0b"])
def test_a_transformation_is_named_like_a_folder(foreign: Path, outside: Outside, name: str) -> None:
    (path,) = [each for each in catalog.files(foreign) if "x" in each.name][:1]
    assert isinstance(path, Path)
    content = json.loads(path.read_bytes())
    content["transformations"][0]["definition"]["name"] = name
    data = json.dumps(content, sort_keys=True).encode()
    path.unlink()
    path.with_name(f"{path.name.rpartition('-')[0]}-{digest(data)}.json").write_bytes(data)
    with pytest.raises(StoreError, match="damaged catalog"):
        EmbeddingStore.open(foreign).backbones()


@pytest.mark.parametrize("field", ["backbone", "transformations"])
@pytest.mark.parametrize("form", ["record", "table"])
def test_a_record_names_arrays_of_the_store(foreign: Path, outside: Outside, field: str, form: str) -> None:
    value = "../../outside" if field == "backbone" else ["../../outside"]
    if form == "record":
        (path, *_) = (foreign / "journal").glob("0*.json")
        data = json.dumps(json.loads(path.read_bytes()) | {field: value}).encode()
        path.with_name(f"00000001-x-{digest(data)}.json").write_bytes(data)
    else:
        (path, *_) = (foreign / "journal" / "tables").glob("*.parquet")
        table, text = pq.read_table(path), value if isinstance(value, str) else json.dumps(value)
        data = encoded(table.set_column(table.schema.get_field_index(field), field, pa.array([text] * len(table))))
        path.unlink()
        path.with_name(f"records-{digest(data)}.parquet").write_bytes(data)
    with pytest.raises(StoreError, match="invalid journal file"):
        EmbeddingStore.open(foreign).finished()


# --- which photographs are read ---------------------------------------------------------------------------------------


def redirected(store: Path, root: Path) -> None:
    (path,) = manifest.segments(store)
    assert isinstance(path, Path)
    table = pq.read_table(path)
    meta = {key: value for key, value in table.schema.metadata.items()}
    (key,) = [key for key, value in meta.items() if b"root" in value]
    source = json.loads(meta[key]) | {"root": str(root)}
    data = encoded(table.replace_schema_metadata({key: json.dumps(source).encode()}))
    path.unlink()
    path.with_name(f"segment-00000-{digest(data)}.parquet").write_bytes(data)


def test_a_store_does_not_choose_the_photographs(
    embedded: Path, outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    redirected(embedded, outside.path)
    words = ["--store", str(embedded), "--backbone", "control:statistics", "--suite", "identity", "--quiet"]
    assert main(["embed", *words]) == 2
    assert "IMAGES is required" in capsys.readouterr().err


def test_other_sources_of_a_store_are_not_read(embedded: Path, photographs: Path, outside: Outside) -> None:
    """Also where the user has named one source, which the store has too."""
    store = EmbeddingStore.open(embedded)
    entry = manifest.SourceEntry("more", "folder", str(outside.path), {}, ())
    store.add_images(["more/x"], np.array([0]), store.manifest().class_names, np.array([0], np.int8), source=entry)
    _, found = identity.match(EmbeddingStore.open(embedded), open_source(photographs), quiet=True)
    assert [each.root for each in found.absent] == [str(outside.path)]


def test_the_user_who_made_a_store_need_not_name_them_again(
    embedded: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["embed", "--store", str(embedded), "--suite", "identity", "--quiet", "--backbone"]
    assert main([*words, "control:pixels"]) == 0
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))  # as for another user, or on another machine
    assert main([*words, "control:statistics"]) == 2
    assert main([*words, "control:statistics", str(photographs)]) == 0
    assert main([*words, "control:statistics"]) == 0


def test_files_of_a_source_that_the_store_names_are_not_read(
    embedded: Path, photographs: Path, outside: Outside
) -> None:
    """Its class names and groups; the photographs are named by the user."""
    (entry,) = EmbeddingStore.open(embedded).manifest().sources
    options = {"names": str(outside.secret), "group": f"file:{outside.secret}.csv:patient"}
    foreign_entry = manifest.SourceEntry("", entry.kind, entry.root, options, ())
    config = identity.recorded_config(EmbeddingStore.open(embedded), foreign_entry)
    assert (config.names, config.group) == (None, "")


# --- deletion of results ----------------------------------------------------------------------------------------------


def test_fresh_deletes_what_this_user_has_made(tmp_path: Path, embedded: Path) -> None:
    """A marker alone, which anybody can write, does not make a folder an output folder."""
    mine = tmp_path / "mine"
    (mine / "gallery").mkdir(parents=True)
    (mine / "gallery" / "holiday.jpg").touch()
    for marker in (
        {"kind": "results"},
        {"kind": "results", "store": str(embedded), "uuid": EmbeddingStore.open(embedded).uuid},
    ):
        (mine / HEADER).write_text(json.dumps(marker))
        with pytest.raises(SubstyleError, match=r"delete this one|contains other files"):
            outputs.start_fresh(mine)
    (mine / HEADER).unlink()
    made = tmp_path / "made"
    outputs.claim(made, embedded, EmbeddingStore.open(embedded).uuid)
    shutil.copytree(mine / "gallery", made / "gallery")
    (tmp_path / "copy").mkdir()
    shutil.copy(made / HEADER, mine / HEADER)
    with pytest.raises(SubstyleError, match="delete this one"):
        outputs.start_fresh(mine)
    outputs.start_fresh(made)
    assert list(made.iterdir()) == []
    assert (mine / "gallery" / "holiday.jpg").exists()


@pytest.mark.parametrize("part", ["store.zarr", "substyle.json", "gallery"])
def test_fresh_does_not_follow_links(tmp_path: Path, foreign: Path, outside: Outside, part: str) -> None:
    out, before = tmp_path / "out", contents(foreign)
    outputs.claim(out, out / "store.zarr", "")
    target = {"store.zarr": foreign, "substyle.json": tmp_path / "marker", "gallery": outside.path}[part]
    if part == HEADER:
        (out / HEADER).rename(target)
    (out / part).symlink_to(target)
    with pytest.raises(SubstyleError, match="symbolic link"):
        outputs.start_fresh(out)
    assert os.path.lexists(out / part)
    assert contents(foreign) == before


def test_the_mutex_of_a_store_is_no_link(foreign: Path, outside: Outside) -> None:
    (foreign / lock.MUTEX).unlink(missing_ok=True)
    (foreign / lock.MUTEX).symlink_to(outside.path / "made")
    with pytest.raises(StoreError), lock.mutex(foreign):
        pass
