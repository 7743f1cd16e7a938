"""Files of a store of any content: what is read was written, and verify and embed mend the rest or refuse the store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from tests.conftest import slow_after
from tests.engine.store.test_store import FOUND, facts
from tests.engine.store.test_verify import finished, redo
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import changed, spoilt_json, written
from tests.fuzz.parquet import columns, parquet, rows_of, spoilt_parquet

from substyle.engine.store import compaction, journal, manifest, records
from substyle.engine.store.files import digest
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table
from substyle.engine.store.verify import Verdict, verify

Tables = dict[str, EmbeddingTable]
TEXTS = dict.fromkeys(("key", "class_name", "split", "given"), pa.string())
SCHEMA = pa.schema({"row": pa.int64(), "label": pa.int32(), **TEXTS})
FILES = (
    "zarr.json",
    "embeddings/zarr.json",
    "embeddings/*/zarr.json",
    "embeddings/*/2-*/zarr.json",
    "substyle.json",
    "catalog/*.json",
    "journal/*.json",
    "journal/tables/*.parquet",
)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 6 images, 2 backbones, 2 transformations and 2 shards, which no test changes."""
    path = tmp_path_factory.mktemp("made") / "s.zarr"
    finished(path)
    return path


@pytest.fixture
def sound(made: Path, tmp_path: Path) -> Path:
    return _copied(made, tmp_path / "s.zarr")


def _copied(store: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(store, to)
    return to


@pytest.fixture(scope="session")
def tables(made: Path) -> Tables:
    return dict(_tables(made))


def _tables(path: Path) -> Iterator[tuple[str, EmbeddingTable]]:
    store = EmbeddingStore.open(path)
    for entry in store.backbones():
        yield entry.name, load_table(store, entry.name)


def _assert_part_of(table: EmbeddingTable, whole: EmbeddingTable) -> None:
    """A table holds rows of the whole one, unchanged, with everything that belongs to them."""
    at = [whole.keys.index(key) for key in table.keys]
    chosen = [whole.transformations.index(name) for name in table.transformations]
    assert len(set(at)) == len(at)
    assert table.backbone == whole.backbone
    np.testing.assert_array_equal(table.x_TND, whole.x_TND[chosen][:, at])
    np.testing.assert_array_equal(table.distinct_TN, whole.distinct_TN[chosen][:, at])
    np.testing.assert_array_equal(table.split_N, whole.split_N[at])
    np.testing.assert_array_equal(table.label_N, whole.label_N[at])
    assert table.class_names == whole.class_names
    assert list(zip(table.kind, table.roles, strict=True)) == [(whole.kind[t], whole.roles[t]) for t in chosen]


def _mend(path: Path, whole: Tables) -> Verdict | None:
    """Verify a store that may be spoilt, then do what embed does; afterwards it is whole, or it was refused."""
    names = (path.name,)
    opened = attempt(EmbeddingStore.open, path, names=names)
    for name, sound in whole.items() if opened is not None else ():
        if (table := attempt(load_table, opened, name, names=names)) is not None:
            _assert_part_of(table, sound)
    verdict = attempt(verify, path, quiet=True, names=names)
    if verdict is None or attempt(_embed, path, whole, names=names) is None:
        return verdict
    assert verify(path, note=False, quiet=True).ok
    for name, table in _tables(path):
        assert table.keys == whole[name].keys
        assert table.transformations == whole[name].transformations
        _assert_part_of(table, whole[name])
    return verdict


def _embed(path: Path, whole: Tables) -> bool:
    store = EmbeddingStore.open(path)
    compaction.clear_leftovers(store.path)
    store.repair()
    for name in whole:
        store.ensure_backbone(facts(name), FOUND)
    store.resize_arrays()
    for shard in (0, 1):
        redo(store, shard)
    return True


@pytest.mark.parametrize("pattern", FILES)
def test_verify_and_embed_mend_what_is_spoilt(
    sound: Path, tables: Tables, tmp_path: Path, pattern: str, cases: int
) -> None:
    data = min(sound.glob(pattern)).read_bytes()

    def check(content: bytes | None) -> None:
        copy = _copied(sound, tmp_path / "copy.zarr")
        put(min(copy.glob(pattern)), content)
        _mend(copy, tables)

    spoilt = spoilt_parquet(data, records.SCHEMA) if pattern.endswith(".parquet") else spoilt_json(data)
    examine(check, st.one_of(spoilt, st.none()), cases=cases // 20)


def _forge(path: Path, content: bytes) -> Path:
    """Put other content in place of a file that carries its digest in its name, under the name for that content."""
    path.unlink()
    other = path.with_name(f"{path.stem.rpartition('-')[0]}-{digest(content)}{path.suffix}")
    put(other, content)
    return other


@pytest.mark.parametrize("pattern", slow_after(1, ["journal/*.json", "journal/tables/*.parquet"]))
def test_content_made_on_purpose_brings_no_other_embeddings(
    sound: Path, tables: Tables, tmp_path: Path, pattern: str, cases: int
) -> None:
    data = min(sound.glob(pattern)).read_bytes()

    def check(content: bytes) -> None:
        copy = _copied(sound, tmp_path / "copy.zarr")
        _forge(min(copy.glob(pattern)), content)
        store = EmbeddingStore.open(copy)
        for name, whole in tables.items():
            table = attempt(load_table, store, name, names=(copy.name,))
            if table is not None:
                at = [whole.keys.index(key) for key in table.keys]
                np.testing.assert_array_equal(table.x_TND, whole.x_TND[:, at])

    if pattern.endswith(".parquet"):
        forged = changed(rows_of(data)).map(
            lambda rows: parquet(made) if (made := columns(rows, records.SCHEMA)) else b""
        )
    else:
        forged = changed(json.loads(data)).map(written)
    examine(check, forged, cases=cases // 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": -1},
        {"checksums": {"jpeg": None}},
        {"seconds": float("nan")},
        {"images": [{"row": 4}]},
    ],
)
def test_records_that_no_run_writes_are_refused(sound: Path, tables: Tables, changes: dict[str, Any]) -> None:
    path = min(sound.glob("journal/*.json"))
    other = _forge(path, written(json.loads(path.read_text()) | changes))
    with pytest.raises(StoreError, match=f"{other.name}: .*run substyle verify"):
        journal.read(EmbeddingStore.open(sound).path)
    verdict = _mend(sound, tables)
    assert verdict is not None
    assert [finding.kind for finding in verdict.findings] == ["journal"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"row": 1}, "ascending rows from 0"),
        ({"row": 2**62}, "ascending rows from 0"),
        ({"row": -1}, "ascending rows from 0"),
        ({"key": "1.jpg"}, "keys"),
        ({"split": "testing"}, "splits"),
        ({"label": 7}, "labels"),
        ({"class_name": "owl"}, "labels"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(sound: Path, changes: dict[str, Any], named: str) -> None:
    path = manifest.segments(EmbeddingStore.open(sound).path)[0]
    rows = rows_of(path.read_bytes())
    rows[0].update(changes)
    table = columns(rows, SCHEMA)
    assert table is not None
    _forge(sound / manifest.FOLDER / path.name, parquet(table))
    with pytest.raises(StoreError, match=f"images.parquet.*{named}"):
        EmbeddingStore.open(sound).manifest()


def test_rows_that_are_far_apart_are_refused(sound: Path) -> None:
    """Memory is allocated for all shards between them."""
    path = manifest.segments(EmbeddingStore.open(sound).path)[0]
    rows = rows_of(path.read_bytes())
    rows[-1]["row"] = 2**60
    table = columns(rows, SCHEMA)
    assert table is not None
    _forge(sound / manifest.FOLDER / path.name, parquet(table))
    with pytest.raises(StoreError, match=f"{2**60 + 1:,} rows, of which most are empty"):
        EmbeddingStore.open(sound).manifest()


def _set(value: object, *way: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:  # noqa: ANN401
        for key in way[:-1]:
            document = document[key]
        document[way[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        # one row stands for all; the bytes are read as other numbers; chunks are looked for elsewhere
        _set([2, 1, 3], "shape"),
        _set([3, 6, 3], "shape"),
        _set("int16", "data_type"),
        _set("big", "codecs", 0, "configuration", "codecs", 0, "configuration", "endian"),
        _set("/", "chunk_key_encoding", "configuration", "separator"),
        _set([2, 3, 4], "chunk_grid", "configuration", "chunk_shape"),
        _set("start", "codecs", 0, "configuration", "index_location"),
    ],
)
def test_arrays_of_another_layout_are_refused(sound: Path, tables: Tables, change: Callable[[Any], None]) -> None:
    path = min(sound.glob("embeddings/*/2-*/zarr.json"))
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"zarr\.json: .*run substyle verify"):
        load_table(EmbeddingStore.open(sound), next(iter(tables)))
