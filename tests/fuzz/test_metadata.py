"""Every zarr.json of a store, spoilt: what still opens is what was written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.fuzz.harness import examine, put
from tests.fuzz.mutations import spoilt_json
from tests.fuzz.stores import Sound, mend, read

from substyle.engine.store import form
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import StoreError
from substyle.engine.store.load import load_table

KINDS = {
    "store": "zarr.json",
    "embeddings": "embeddings/zarr.json",
    "backbone": "embeddings/*/zarr.json",
    "array": "embeddings/*/jpeg/zarr.json",
}


def metadata(sound: Sound, kind: str) -> Path:
    """The zarr.json of the store, of all backbones, of the first backbone, of one of its arrays."""
    return min(sound.path.glob(KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
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
    ("store", put_at(1, "attributes", "substyle", "seed")),
    ("store", put_at(228, "attributes", "substyle", "canvas")),
    ("store", put_at(["x"], "attributes", "calibration")),
    ("store", put_at(..., "attributes", "digest")),
    ("backbone", put_at("a", "attributes", "spec", "weights_hash")),
    ("backbone", put_at(..., "attributes", "spec")),
    ("backbone", put_at([1], "attributes", "runtime")),
    ("array", put_at("held_out", "attributes", "definition", "role")),
    ("array", put_at("noise", "attributes", "definition", "coarse")),
    ("array", put_at(..., "attributes", "definition")),
    ("array", put_at(..., "attributes", "definition", "name")),
    *((kind, put_at(value, "attributes")) for kind in ("store", "backbone", "array") for value in (1.0, "hash", [1])),
    # one row stands for all; the bytes are read as other numbers; chunks are looked for elsewhere
    ("array", put_at([1, 3], "shape")),
    ("array", put_at([5, 3], "shape")),
    ("array", put_at("int16", "data_type")),
    ("array", put_at("big", "codecs", 0, "configuration", "endian")),
    ("array", put_at(".", "chunk_key_encoding", "configuration", "separator")),
    ("array", put_at([3, 4], "chunk_grid", "configuration", "chunk_shape")),
]


@pytest.mark.parametrize(("kind", "change"), FOUND)
def test_changed_metadata_are_refused(sound: Sound, kind: str, change: Callable[[Any], None]) -> None:
    path = metadata(sound, kind)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"zarr\.json: .*run substyle verify"):
        load_table(EmbeddingStore.open(sound.path), next(iter(sound.tables)))
    read(sound)


UNFIT: list[tuple[str, Callable[[Any], None]]] = [
    ("backbone", put_at(True, "dim")),
    ("backbone", put_at({}, "spec")),
    ("backbone", put_at({"name": "openvino"}, "runtime")),
    ("backbone", put_at(0, "rate")),
    ("backbone", put_at("fast", "rate")),
    ("array", put_at("somewhere", "definition", "role")),
    ("array", put_at(None, "definition_hash")),
]


@pytest.mark.parametrize(("kind", "change"), UNFIT)
def test_attributes_that_are_sealed_but_do_not_fit_are_refused(
    sound: Sound, kind: str, change: Callable[[Any], None]
) -> None:
    path = metadata(sound, kind)
    document = json.loads(path.read_text())
    attributes = form.unseal(document["attributes"], path.parent)
    change(attributes)
    path.write_text(json.dumps({**document, "attributes": form.seal(attributes)}))
    with pytest.raises(StoreError, match=r"zarr\.json: (is not the group of a backbone|does not say which)"):
        load_table(EmbeddingStore.open(sound.path), next(iter(sound.tables)))
    read(sound, exact=False)


@pytest.mark.parametrize("kind", ["backbone", "array"])
def test_a_folder_in_place_of_metadata_is_mended(sound: Sound, kind: str) -> None:
    put(metadata(sound, kind), None)
    verdict = mend(sound)
    assert verdict is not None
    assert verdict.marked
