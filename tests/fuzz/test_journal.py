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
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import changed, spoilt_json, written
from tests.fuzz.parquet import parquet, rows_of, spoilt_parquet
from tests.fuzz.stores import Sound, mend, read

from substyle.engine.store import journal
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import digest
from substyle.engine.store.load import load_table
from substyle.engine.store.verify import verify

SCHEMA = pa.schema({"shard": pa.int64(), "backbone": pa.string(), "record": pa.string()})
KINDS = {"loose": "*.json", "segment": "*.parquet"}


def file_of(sound: Sound, kind: str) -> Path:
    return min((sound.path / journal.FOLDER).glob(KINDS[kind]))


def contents(data: bytes, kind: str) -> st.SearchStrategy[bytes]:
    return spoilt_json(data) if kind == "loose" else spoilt_parquet(data, SCHEMA)


@pytest.mark.parametrize("kind", KINDS)
def test_another_content_is_refused(sound: Sound, kind: str, cases: int) -> None:
    path = file_of(sound, kind)
    data = path.read_bytes()

    def check(content: bytes | None) -> None:
        put(path, content)
        answers = read(sound)
        assert content == data or answers <= 2  # the backbones, and what verify says

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


def forged(data: bytes, kind: str) -> st.SearchStrategy[bytes]:
    """Files that are what their names say, but that no run has written."""
    if kind == "loose":
        return st.one_of(changed(json.loads(data)).map(written), contents(data, kind))
    rows = rows_of(data)

    def segment(records: object) -> bytes:
        texts = [written(record).decode() for record in records] if isinstance(records, list) else []
        return parquet(pa.table({"shard": [0] * len(texts), "backbone": ["b"] * len(texts), "record": texts}))

    return st.one_of(changed([json.loads(row["record"]) for row in rows]).map(segment), contents(data, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_content_made_on_purpose_brings_no_other_embeddings(sound: Sound, kind: str, cases: int) -> None:
    path = file_of(sound, kind)
    data = path.read_bytes()
    path.unlink()

    def check(content: bytes) -> None:
        other = path.with_name(f"{path.stem.rpartition('-')[0]}-{digest(content)}{path.suffix}")
        put(other, content)
        try:
            read(sound, exact=False)
            store = EmbeddingStore.open(sound.path)
            for name, whole in sound.tables.items():
                table = attempt(load_table, store, name, names=sound.names)
                if table is not None:
                    at = [whole.keys.index(key) for key in table.keys]
                    np.testing.assert_array_equal(table.x_TND, whole.x_TND[:, at])
        finally:
            other.unlink()

    examine(check, forged(data, kind), cases=cases // 4)


@pytest.mark.parametrize("kind", KINDS)
def test_content_made_on_purpose_can_be_taken_back(sound: Sound, kind: str, cases: int, tmp_path: Path) -> None:
    path = file_of(sound, kind)
    data = path.read_bytes()
    copy = dataclasses.replace(sound, path=tmp_path / "copy" / "s.zarr")

    def check(content: bytes) -> None:
        shutil.rmtree(copy.path, ignore_errors=True)
        shutil.copytree(sound.path, copy.path)
        file_of(copy, kind).unlink()
        put(copy.path / journal.FOLDER / f"{path.stem.rpartition('-')[0]}-{digest(content)}{path.suffix}", content)
        if attempt(verify, copy.path, quiet=True, names=copy.names) is not None:
            assert attempt(verify, copy.path, quiet=True, names=copy.names) is not None

    examine(check, forged(data, kind), cases=cases // 20)


FOUND = [
    {"shard": [0]},
    {"shard": -1},
    {"shard": 10**30},
    {"checksums": 5},
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


@pytest.mark.parametrize("changes", [*FOUND, *({"note": note} for note in NOTES)])
def test_records_that_no_run_writes_are_refused(sound: Sound, changes: dict[str, Any]) -> None:
    path = file_of(sound, "loose")
    record = json.loads(path.read_text())
    record["images"][0].update(changes.get("note", {}))
    record.update({key: value for key, value in changes.items() if key != "note"})
    path.unlink()
    content = written(record)
    other = path.with_name(f"{path.stem.rpartition('-')[0]}-{digest(content)}.json")
    put(other, content)
    if record["shard"] == 10**30:  # a number like any other, of a chunk that is not there
        assert read(sound, exact=False) >= 2
        return
    with pytest.raises(StoreError, match=f"{other.name}: .*run substyle verify"):
        journal.read(sound.path)
    verdict = mend(sound)
    assert verdict is not None
    assert [finding.kind for finding in verdict.findings] == ["journal"]


def test_names_that_no_run_writes_do_not_stop_compaction(sound: Sound) -> None:
    (sound.path / journal.FOLDER / "segment-0x.parquet").write_bytes(b"")
    journal.compact(sound.path, at=1)
    assert not list((sound.path / journal.FOLDER).glob("*.json"))


def test_names_that_no_file_can_have_are_missing_chunks(sound: Sound) -> None:
    path = file_of(sound, "loose")
    record = json.loads(path.read_text())
    record["checksums"] |= {"a\x00b": "0", "x" * 5_000: "0"}
    content = written(record)
    path.unlink()
    put(path.with_name(f"00000001-b-{digest(content)}.json"), content)
    assert read(sound, exact=False) > 0
    with pytest.raises(StoreError, match="missing or cut short"):
        load_table(EmbeddingStore.open(sound.path), next(iter(sound.tables)))
