"""Tar shards in a bucket behave like the same shards on disk, read by range requests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tests.object_server import Server

from substyle.errors import ConfigError
from substyle.pipelines.sources import open_source
from substyle.pipelines.storage import ObjectPlace


def shard(path: Path, first: int, count: int, size: int = 3000) -> None:
    """A shard of ``count`` labelled samples."""
    rng = np.random.default_rng(first)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            for name, data in (
                (f"{i:04d}.jpg", rng.bytes(int(rng.integers(1, size)))),
                (f"{i:04d}.cls", str(i % 3).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def upload(folder: Path, there: ObjectPlace) -> str:
    """Upload all files of a folder; returns the URL."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (there / path.relative_to(folder).as_posix()).write(path.read_bytes())
    return str(there)


@pytest.fixture
def pair(tmp_path: Path, bucket: ObjectPlace) -> tuple[str, str]:
    """The same shards on disk and in a bucket."""
    for number in range(3):
        shard(tmp_path / "shards" / f"train-{number:04d}.tar", 10 * number, 4)
    shard(tmp_path / "shards" / "more" / "val-0000.tar", 90, 2)
    (tmp_path / "shards" / "notes.txt").write_text("no shard")
    return str(tmp_path / "shards"), upload(tmp_path / "shards", bucket / "shards")


@pytest.mark.parametrize(
    "pattern",
    [
        "", "/train-0001.tar", "/train-{0000..0002}.tar", "/train-000*.tar", "/**/*.tar", "/{more,less}/*.tar",
        "/train-000[12].tar", "/{train-0000,more/val-0000}.tar",
    ],
)  # fmt: skip
def test_a_bucket_gives_what_a_disk_gives(pair: tuple[str, str], pattern: str) -> None:
    disk, there = (open_source(root + pattern) for root in pair)
    assert there.records == disk.records
    assert there.class_names == disk.class_names
    assert [r.read() for r in there.records] == [r.read() for r in disk.records]
    assert there.options == disk.options == {"kind": "tar"}


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("/train-{0000..0009}.tar", r"7 .*: train-0003\.tar"),
        ("/nothing.tar", r"\.tar files"),
        ("/nothing-*.tar", r"\.tar files"),
        ("/photographs.csv", "tar shards.* list"),
        ("/data.parquet", "tar shards.* parquet"),
        ("/a.tar.gz", "uncompressed"),
    ],
)
def test_what_is_not_there_or_no_shard_is_refused(pair: tuple[str, str], pattern: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        open_source(pair[1] + pattern)
    assert (caught.value.field, caught.value.given) == ("images", pair[1] + pattern)


def test_marks_of_objects_tell_a_change_without_asking(
    pair: tuple[str, str], bucket: ObjectPlace, server: Server
) -> None:
    records = open_source(pair[1]).records
    asked = len(server.requests)
    before = {record.key: record.mark() for record in records}
    assert len(server.requests) == asked
    assert len(set(before.values())) == len(records)
    assert all(0 < mark < 2**63 for mark in before.values())
    changed = bucket / "shards" / "train-0001.tar"
    data = changed.read_bytes()
    first = next(record for record in records if record.key.startswith(changed.name)).read()
    changed.write(data.replace(first, first[::-1]))
    after = {record.key: record.mark() for record in open_source(pair[1]).records}
    assert after.keys() == before.keys()
    assert {key.split("/")[0] for key in after if after[key] != before[key]} == {changed.name}
