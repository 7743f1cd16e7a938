"""Stores of schema 3, with a file for each chunk, are converted, and no embedding changes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import put
from tests.engine.store.test_store import DEFINITIONS, FOUND, SETTINGS, facts, make, note, rows

from substyle.engine.cli import main
from substyle.engine.store import arrays, shards
from substyle.engine.store.files import digest
from substyle.engine.store.layout import Codec, StoreError
from substyle.engine.store.records import FileNote, ImageNote
from substyle.engine.store.schema3 import convert
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table, store_facts
from substyle.engine.store.verify import verify
from substyle.pipelines.storage import LocalPlace, Place, place

OTHER = "timm:y"


def hashed(content: dict[str, Any]) -> bytes:
    return json.dumps({**content, "digest": digest(json.dumps(content, sort_keys=True).encode())}).encode()


class Old:
    """A store of schema 3 with the header, manifest and catalog of one of today."""

    def __init__(self, path: Place, like: EmbeddingStore) -> None:
        self.path, self.settings = path, like.settings
        header = json.loads((like.path / "substyle.json").read_bytes())
        put(path / "substyle.json", hashed({**{k: v for k, v in header.items() if k != "digest"}, "schema": 3}))
        for file in like.path.sizes():
            name = file.relative_to(like.path).as_posix()
            if name.startswith("images.parquet/"):
                put(path / name, file.read_bytes())
            elif name.startswith("catalog/"):
                content = json.loads(file.read_bytes())
                data = json.dumps({key: value for key, value in content.items() if key != "array"}).encode()
                put(path / f"{name.rpartition('-')[0]}-{digest(data)}.json", data)

    def write(
        self,
        slug: str,
        shard: int,
        embeddings: Mapping[str, np.ndarray[Any, Any]],
        images: Sequence[ImageNote],
        *,
        files: Sequence[FileNote] = (),
        table: str = "",
    ) -> None:
        """Write chunks and their record: a line of JSON, or a Parquet file in a folder of the journal."""
        checksums = {}
        for name, x_RD in embeddings.items():
            whole_RD = np.full((self.settings.shard_rows, x_RD.shape[1]), np.nan, self.settings.dtype)
            whole_RD[: len(x_RD)] = x_RD
            data = bytes(arrays.encode(whole_RD, self.settings.codec))
            put(self.path / "embeddings" / slug / name / "c" / str(shard) / "0", data)
            checksums[name] = hashlib.sha256(data).hexdigest()
        start = shard * self.settings.shard_rows
        row = {
            "shard": shard,
            "start": start,
            "stop": start + len(images),
            "backbone": slug,
            "seconds": 2.0,
            "run": "r",
        }
        notes = {"images": [vars(each) for each in images], **({"files": [vars(f) for f in files]} if files else {})}
        line = json.dumps({**row, "checksums": checksums, **notes}).encode()
        journal = self.path / "journal"
        if not table:
            put(journal / f"{shard:08d}-{slug}-{digest(line)}.json", line)
            return
        coded = {name: [{k: _coded(k, v) for k, v in each.items()} for each in some] for name, some in notes.items()}
        buffer = io.BytesIO()
        kind = pa.map_(pa.string(), pa.string())
        found = pa.Table.from_pylist([{**row, **coded}])
        found = found.append_column("id", pa.array([int(digest(line), 16)], pa.uint64()))
        pq.write_table(found.append_column("checksums", pa.array([[*checksums.items()]], kind)), buffer)
        data = buffer.getvalue()
        put(journal / table / f"records-{digest(data)}.parquet", data)
        put(journal / f"segment-00000-1-{'0' * 16}.parquet", b"an index, which is not read")


def _coded(name: str, value: Any) -> Any:  # noqa: ANN401
    return bytes.fromhex(value) if name in ("thumbnail", "content") else list(value) if name == "indistinct" else value


def pair(path: Place, **changes: Any) -> tuple[Old, EmbeddingStore]:  # noqa: ANN401
    """An old store without embeddings, and a new one with the same images and backbones."""
    store, _ = make(path / "like.zarr", settings=replace(SETTINGS, **changes))
    store.ensure_backbone({**facts(OTHER), "gate": {"cosine_min": 1.0}}, FOUND)
    return Old(path / "old.zarr", store), store


def equal(old: Old, new: EmbeddingStore) -> int:
    """Compare the chunks of two stores, to the byte; returns their number."""
    count = 0
    for array in [each for some in new.catalog.arrays.values() for each in some]:
        for number in range(new.shards()):
            if not (path := array.shard(new.path, number)).exists():
                continue
            data = path.read_bytes()
            for name, (start, size) in zip(
                array.transformations, shards.places(len(data), data, new.shape(array)).tolist(), strict=True
            ):
                if start >= 0:
                    before = old.path / "embeddings" / array.slug / name / "c" / str(number) / "0"
                    assert data[start : start + size] == before.read_bytes()
                    count += 1
    return count


@pytest.mark.parametrize("codec", get_args(Codec))
@pytest.mark.parametrize("table", ["", "tables", "details"])
def test_every_chunk_is_kept(disk: Place, codec: Codec, table: str) -> None:
    old, like = pair(disk, codec=codec)
    for entry in like.backbones():
        for shard, count in ((0, 4), (1, 2)):
            notes = [note(4 * shard + i, "broken" if i == 1 else "", indistinct=("jpeg",)) for i in range(count)]
            given = {name: x_RD.astype(np.float16) for name, x_RD in rows(shard, count).items()}
            if entry.name == OTHER:  # which has a gate
                given = {name: arrays.rounded(x_RD, codec) for name, x_RD in given.items()}
            old.write(entry.slug, shard, given, notes, table=table)
            like.write_shard(entry, shard, rows(shard, count), notes, seconds=2.0, run="r")
    answer = convert(old.path, disk / "new.zarr", quiet=True)
    assert answer == {"store": str(disk / "new.zarr"), "images": 6, "shards": 4, "left_out": 0}
    new = EmbeddingStore.open(disk / "new.zarr")
    assert verify(new.path, quiet=True).ok
    assert (new.uuid, new.settings) == (like.uuid, like.settings)
    assert equal(old, new) == 8
    for name in ("timm:x", OTHER):
        np.testing.assert_array_equal(load_table(new, name).x_TND, load_table(like, name).x_TND)
    assert store_facts(new) == store_facts(like)
    like.ensure_backbone(facts(), FOUND)  # as before
    new.ensure_backbone(facts(), FOUND)


def test_an_interrupted_conversion_goes_on(disk: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old, like = pair(disk)
    (entry, _) = like.backbones()
    for shard, count in ((0, 4), (1, 2)):
        old.write(entry.slug, shard, rows(shard, count), [note(4 * shard + i) for i in range(count)])
    write = EmbeddingStore.write_shard

    def interrupted(self: EmbeddingStore, entry: Any, shard: int, *args: Any, **named: Any) -> int:  # noqa: ANN401
        if shard == 1:
            raise KeyboardInterrupt
        return write(self, entry, shard, *args, **named)

    monkeypatch.setattr(EmbeddingStore, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(old.path, disk / "new.zarr", quiet=True)
    monkeypatch.undo()
    convert(old.path, disk / "new.zarr", quiet=True)
    new = EmbeddingStore.open(disk / "new.zarr")
    assert equal(old, new) == 4
    assert verify(new.path, quiet=True).ok


def test_what_is_damaged_is_left_out(disk: Place, capsys: pytest.CaptureFixture[str]) -> None:
    old, like = pair(disk)
    (entry, _) = like.backbones()
    old.write(entry.slug, 0, rows(0, 4), [note(i) for i in range(4)])
    chunk = old.path / "embeddings" / entry.slug / "jpeg" / "c" / "0" / "0"
    chunk.write(b"x" + chunk.read_bytes()[1:])
    answer = convert(old.path, disk / "new.zarr", quiet=True)
    assert answer["left_out"] == 1
    assert "jpeg/c/0/0" in capsys.readouterr().err
    assert convert(old.path, disk / "new.zarr", quiet=True)["left_out"] == 1
    new = EmbeddingStore.open(disk / "new.zarr")
    assert [names for _, _, names in new.finished().records()] == [("identity",)]


@pytest.mark.parametrize(
    "change",
    [
        {"shard": -1},
        {"shard": 10**15},
        {"shard": 2**62},
        {"backbone": ["x"]},
        {"seconds": "a"},
        {"start": 1},
        {"stop": 9},
    ],
)
def test_records_that_no_run_wrote_are_refused(disk: Place, change: dict[str, Any]) -> None:
    old, like = pair(disk)
    (entry, _) = like.backbones()
    old.write(entry.slug, 0, rows(0, 4), [note(i) for i in range(4)])
    (path,) = (old.path / "journal").files(".json")
    data = json.dumps({**json.loads(path.read_bytes()), **change}).encode()
    path.remove()
    put(old.path / "journal" / f"x-{digest(data)}.json", data)
    with pytest.raises(StoreError, match=r"old\.zarr: invalid record of the journal"):
        convert(old.path, disk / "new.zarr", quiet=True)


@pytest.mark.parametrize("part", ["embeddings/{slug}/jpeg/c", "journal", "catalog/x.json"])
def test_links_of_an_old_store_are_refused(tmp_path: Path, part: str) -> None:
    old, like = pair(place(tmp_path))
    (entry, _) = like.backbones()
    old.write(entry.slug, 0, rows(0, 4), [note(i) for i in range(4)])
    path = tmp_path / "old.zarr" / part.format(slug=entry.slug)
    if path.exists():
        path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="must not contain links"):
        convert(old.path, place(tmp_path / "new.zarr"), quiet=True)


def test_an_old_store_is_refused_with_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, like = pair(place(tmp_path))
    (entry, _) = like.backbones()
    old.write(entry.slug, 0, rows(0, 4), [note(i) for i in range(4)])
    with pytest.raises(StoreError, match=r"schema 3.*substyle import OLD\.zarr --store NEW\.zarr"):
        EmbeddingStore.open(old.path)
    given = ["import", str(old.path), "--store", str(tmp_path / "new.zarr")]
    assert main([*given, "--backbone", "x"]) == main([*given, "--dtype", "float32"]) == 2
    other, _ = make(place(tmp_path / "other.zarr"))
    assert main([*given[:2], "--store", str(other.path)]) == 1
    assert main(given) == 0
    assert "6 images" in capsys.readouterr().out
    assert isinstance(old.path, LocalPlace)
    assert [str(d["name"]) for d in DEFINITIONS] == ["identity", "jpeg"]
