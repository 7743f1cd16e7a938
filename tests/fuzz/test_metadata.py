"""Every zarr.json, the header and the catalog of a store, spoilt: what still opens is what was written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.conftest import slow_after
from tests.fuzz.harness import examine, put
from tests.fuzz.mutations import spoilt_json
from tests.fuzz.stores import Sound, mend, read

from substyle.engine.store.files import digest
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table

KINDS = {
    "store": "zarr.json",
    "embeddings": "embeddings/zarr.json",
    "backbone": "embeddings/*/zarr.json",
    "array": "embeddings/*/2-*/zarr.json",
    "header": "substyle.json",
    "catalog": "catalog/*.json",
}


def metadata(sound: Sound, kind: str) -> Path:
    """The first file of a kind."""
    return min(sound.path.glob(KINDS[kind]))


@pytest.mark.parametrize("kind", slow_after(2, KINDS))
def test_what_opens_is_what_was_written(sound: Sound, kind: str, cases: int) -> None:
    path = metadata(sound, kind)
    data = path.read_bytes()

    def check(content: bytes | None) -> None:
        put(path, content)
        read(sound)

    examine(check, st.one_of(spoilt_json(data), st.none()), cases=max(cases // 4, 20))


@pytest.mark.parametrize("kind", KINDS)
def test_verify_and_embed_mend_what_is_spoilt(sound: Sound, kind: str, cases: int, tmp_path: Path) -> None:
    data = metadata(sound, kind).read_bytes()
    copy = dataclasses.replace(sound, path=tmp_path / "copy" / "s.zarr")

    def check(content: bytes | None) -> None:
        shutil.rmtree(copy.path, ignore_errors=True)
        shutil.copytree(sound.path, copy.path)
        put(metadata(copy, kind), content)
        mend(copy)

    examine(check, st.one_of(spoilt_json(data), st.none()), cases=cases // 20)


def put_at(value: object, *way: str | int) -> Callable[[Any], None]:
    """Sets a value deep inside a document; an ellipsis takes it away."""

    def change(document: Any) -> None:  # noqa: ANN401
        for key in way[:-1]:
            document = document[key]
        if value is ...:
            del document[way[-1]]
        else:
            document[way[-1]] = value

    return change


FOUND = [
    # one row stands for all; the bytes are read as other numbers; chunks are looked for elsewhere
    put_at([2, 1, 3], "shape"),
    put_at([2, 5, 3], "shape"),
    put_at([3, 6, 3], "shape"),
    put_at("int16", "data_type"),
    put_at("big", "codecs", 0, "configuration", "codecs", 0, "configuration", "endian"),
    put_at("/", "chunk_key_encoding", "configuration", "separator"),
    put_at([2, 3, 4], "chunk_grid", "configuration", "chunk_shape"),
    put_at([1, 3, 4], "codecs", 0, "configuration", "chunk_shape"),
    put_at("start", "codecs", 0, "configuration", "index_location"),
]


@pytest.mark.parametrize("change", FOUND)
def test_arrays_of_another_layout_are_refused(sound: Sound, change: Callable[[Any], None]) -> None:
    path = metadata(sound, "array")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"zarr\.json: .*run substyle verify"):
        load_table(EmbeddingStore.open(sound.path), next(iter(sound.tables)))
    read(sound)


@pytest.mark.parametrize("kind", ["store", "embeddings", "backbone", "array"])
@pytest.mark.parametrize("attributes", [{}, {"substyle": 1}, {"mine": {"a": [1, None]}}])
def test_attributes_are_anybodys(sound: Sound, kind: str, attributes: dict[str, Any]) -> None:
    path = metadata(sound, kind)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "attributes": attributes}))
    assert read(sound) == 6


CHANGED = [
    put_at("a", "backbone", "spec", "weights_hash"),
    put_at(..., "backbone", "spec"),
    put_at([1], "backbone", "runtime"),
    put_at({"name": "openvino"}, "backbone", "runtime"),
    put_at(True, "backbone", "dim"),
    put_at(0, "backbone", "rate"),
    put_at("held_out", "transformations", 0, "definition", "role"),
    put_at(..., "transformations", 0, "definition", "name"),
    put_at(None, "transformations", 0, "pixels"),
    put_at([["many"], 1], "backbone", "spec", "sketch"),
]


@pytest.mark.parametrize("change", CHANGED)
def test_a_catalog_that_was_changed_is_refused(sound: Sound, change: Callable[[Any], None]) -> None:
    path = metadata(sound, "catalog")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"catalog.*run substyle verify"):
        EmbeddingStore.open(sound.path).backbones()
    read(sound)


UNFIT = [change for change in CHANGED if change not in (CHANGED[0], CHANGED[6])]


@pytest.mark.parametrize("change", UNFIT)
def test_a_catalog_with_a_digest_of_its_own_that_does_not_fit_is_refused(
    sound: Sound, change: Callable[[Any], None]
) -> None:
    path = metadata(sound, "catalog")
    document = json.loads(path.read_text())
    change(document)
    data = json.dumps(document).encode()
    path.unlink()
    path.with_name(f"{path.name.rpartition('-')[0]}-{digest(data)}.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"catalog/.*\.json: .*run substyle verify"):
        EmbeddingStore.open(sound.path).backbones()
    read(sound, exact=False)


@pytest.mark.parametrize("kind", ["backbone", "array", "catalog"])
def test_a_folder_in_place_of_metadata_is_mended(sound: Sound, kind: str) -> None:
    put(metadata(sound, kind), None)
    verdict = mend(sound)
    assert verdict is not None
    assert verdict.noted
