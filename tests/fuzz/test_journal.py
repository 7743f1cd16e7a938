"""Files of the journal of any content, with and without the digest that their names should carry."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from tests.conftest import slow_after
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import changed, spoilt_json, written
from tests.fuzz.parquet import columns, parquet, rows_of, spoilt_parquet
from tests.fuzz.stores import Sound, mend, read

from substyle.engine.store import compaction, journal, records
from substyle.engine.store.files import digest
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.engine.store.verify import verify

KINDS = {"loose": "*.json", "table": "tables/*.parquet"}


def file_of(sound: Sound, kind: str) -> Path:
    return min((sound.path / journal.FOLDER).glob(KINDS[kind]))


def contents(data: bytes, kind: str) -> st.SearchStrategy[bytes]:
    return spoilt_json(data) if kind == "loose" else spoilt_parquet(data, records.SCHEMA)


@pytest.mark.parametrize("kind", KINDS)
def test_another_content_is_refused(sound: Sound, kind: str, cases: int) -> None:
    path = file_of(sound, kind)
    data = path.read_bytes()

    def check(content: bytes | None) -> None:
        put(path, content)
        answers = read(sound)
        assert content == data or answers <= 2  # the backbones and what verify says

    examine(check, st.one_of(contents(data, kind), st.none()), cases=cases // 5)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_and_embed_mend_what_is_spoilt(sound: Sound, kind: str, cases: int, tmp_path: Path) -> None:
    data = file_of(sound, kind).read_bytes()
    copy = dataclasses.replace(sound, path=tmp_path / "copy" / "s.zarr")

    def check(content: bytes | None) -> None:
        shutil.rmtree(copy.path, ignore_errors=True)
        shutil.copytree(sound.path, copy.path)
        put(file_of(copy, kind), content)
        verdict = mend(copy)
        assert verdict is not None

    examine(check, st.one_of(contents(data, kind), st.none()), cases=cases // 20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", [False, True])
def test_what_is_missing_is_made_again(sound: Sound, kind: str, folder: bool) -> None:
    """A file that is gone, or has a folder in its place."""
    path = file_of(sound, kind)
    put(path, None)
    if not folder:
        path.rmdir()
    assert mend(sound) is not None


def forged(data: bytes, kind: str) -> st.SearchStrategy[bytes]:
    """Files that are what their names say, but that no run has written."""
    if kind == "loose":
        return st.one_of(changed(json.loads(data)).map(written), contents(data, kind))
    rows = changed(rows_of(data)).map(lambda rows: parquet(table) if (table := columns(rows, records.SCHEMA)) else b"")
    return st.one_of(rows, contents(data, kind))


def forge(sound: Sound, kind: str, content: bytes) -> None:
    """Put a file of the journal in place of one that is there, under the name that it should carry."""
    path = file_of(sound, kind)
    other = path.with_name(f"{path.stem.rpartition('-')[0]}-{digest(content)}{path.suffix}")
    path.unlink()
    put(other, content)


@pytest.mark.parametrize("kind", slow_after(1, KINDS))
def test_content_made_on_purpose_brings_no_other_embeddings(
    sound: Sound, kind: str, cases: int, tmp_path: Path
) -> None:
    copy = dataclasses.replace(sound, path=tmp_path / "copy" / "s.zarr")

    def check(content: bytes) -> None:
        shutil.rmtree(copy.path, ignore_errors=True)
        shutil.copytree(sound.path, copy.path)
        forge(copy, kind, content)
        read(copy, exact=False)
        store = EmbeddingStore.open(copy.path)
        for name, whole in sound.tables.items():
            table = attempt(load_table, store, name, names=copy.names)
            if table is not None:
                at = [whole.keys.index(key) for key in table.keys]
                np.testing.assert_array_equal(table.x_TND, whole.x_TND[:, at])

    examine(check, forged(file_of(sound, kind).read_bytes(), kind), cases=cases // 4)


@pytest.mark.parametrize("kind", KINDS)
def test_content_made_on_purpose_can_be_taken_back(sound: Sound, kind: str, cases: int, tmp_path: Path) -> None:
    copy = dataclasses.replace(sound, path=tmp_path / "copy" / "s.zarr")

    def check(content: bytes) -> None:
        shutil.rmtree(copy.path, ignore_errors=True)
        shutil.copytree(sound.path, copy.path)
        forge(copy, kind, content)
        if attempt(verify, copy.path, quiet=True, names=copy.names) is not None:
            assert attempt(verify, copy.path, quiet=True, names=copy.names) is not None

    examine(check, forged(file_of(sound, kind).read_bytes(), kind), cases=cases // 20)


FOUND = [
    {"shard": [0]},
    {"shard": -1},
    {"shard": 10**30},
    {"checksums": 5},
    {"checksums": {}},
    {"checksums": {"jpeg": None}},
    {"backbone": None},
    {"seconds": float("nan")},
    {"seconds": "1"},
    {"run": None},
    {"images": None},
    {"images": [{"row": 4}]},
    {"images": [[]]},
]
NOTES = [
    {"thumbnail": "zz"},
    {"thumbnail": "00"},
    {"row": 99},
    {"row": 5},
    {"row": "4"},
    {"height": -1},
    {"reason": None},
]


@pytest.mark.parametrize("changes", slow_after(10, [*FOUND, *({"note": note} for note in NOTES)]))
def test_records_that_no_run_writes_are_refused(sound: Sound, changes: dict[str, Any]) -> None:
    path = file_of(sound, "loose")
    record = json.loads(path.read_text())
    record["images"][0].update(changes.get("note", {}))
    record.update({key: value for key, value in changes.items() if key != "note"})
    path.unlink()
    content = written(record)
    other = path.with_name(f"{path.stem.rpartition('-')[0]}-{digest(content)}.json")
    put(other, content)
    with pytest.raises(StoreError, match=f"{other.name}: .*run substyle verify"):
        journal.read(sound.path)
    verdict = mend(sound)
    assert verdict is not None
    assert [finding.kind for finding in verdict.findings] == ["journal"]


def test_files_that_no_run_writes_stay(sound: Sound) -> None:
    foreign = sound.path / journal.FOLDER / "segment-0x.parquet"
    foreign.write_bytes(b"")
    compaction.compact(sound.path)
    assert not list((sound.path / journal.FOLDER).glob("*.json"))
    assert foreign.exists()


@pytest.mark.parametrize(("name", "kind"), [("a\x00b", "journal"), ("x" * 5_000, "catalog")])
def test_names_that_no_file_can_have_are_found(sound: Sound, name: str, kind: str) -> None:
    path = file_of(sound, "loose")
    record = json.loads(path.read_text())
    record["checksums"] |= {name: "0"}
    content = written(record)
    path.unlink()
    put(path.with_name(f"00000001-b-{digest(content)}.json"), content)
    assert read(sound, exact=False) > 0
    assert kind in {finding.kind for finding in verify(sound.path, note=False, quiet=True).findings}


def test_notes_on_files_of_any_content(cases: int) -> None:
    """Records of a store with real variants are decoded, or refused with an error that readers expect."""
    images = tuple(records.ImageNote(row, 4, 4, "", "", ()) for row in range(2))
    notes = (records.FileNote(0, "phone", "", "ab" * 16, 7), records.FileNote(1, "phone", "no file"))
    record = records.Record(0, 0, 2, "b", {"identity": "1", "phone": "2"}, images, 1.5, "run", notes)
    data = records.encode([(1, record)])
    assert records.decode(data) == {1: record}

    def check(content: bytes) -> None:
        try:
            table, found = records.decode_table(content), records.decode(content)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, pa.ArrowException):
            return
        assert len(found) <= len(table)
        assert all(0 <= note.row < 2**63 for one in found.values() for note in one.files)

    rows = changed(rows_of(data)).map(lambda rows: parquet(t) if (t := columns(rows, records.SCHEMA)) else b"")
    examine(check, st.one_of(rows, spoilt_parquet(data, records.SCHEMA)), cases=cases)
