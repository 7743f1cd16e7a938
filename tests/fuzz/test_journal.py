"""Files of the journal of any content, with and without the digest that their names should carry."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

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
