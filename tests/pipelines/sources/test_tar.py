"""Tar shards on a disk and in a bucket: samples, labels, splits, rejected members, and what damage leaves."""

from __future__ import annotations

import errno
import gzip
import json
import lzma
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.conformance.kinds import write_tar
from tests.object_server import Server
from tests.pipelines.sources.conftest import described

from substyle.errors import ConfigError
from substyle.files import cache_root
from substyle.pipelines.sources import SourceConfig, TarSource, files, open_source, tar
from substyle.pipelines.sources.base import LeftOut
from substyle.pipelines.sources.files import Shard
from substyle.pipelines.sources.tar_files import Spans
from substyle.pipelines.storage import ObjectPlace, place

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def one(root: Path, *members: tuple[str, bytes]) -> Path:
    write_tar(root / "a.tar", members)
    return root / "a.tar"


def test_a_sample_is_what_agrees_up_to_the_first_dot(tmp_path: Path) -> None:
    path = one(
        tmp_path,
        ("cat/0001.seg.png", b"mask"), ("cat/0001.png", b"second"), ("cat/0001.JPG", b"image"),
        ("cat/0001.cls", b" 7\n"), ("cat/0002.mask.png", b"only"), ("cat/0002.txt", b"a caption"),
        ("./cat/0003.jpeg", b"third"), ("cat/0003.cls", b"red fox"),
        ("0003.cls", b"8"), ("readme", b"no dot"), ("._0001.jpg", b"no name"), ("b.d/0004.jpg", b"dots in folders"),
    )  # fmt: skip
    assert described(TarSource(path)) == {
        "a.tar/cat/0001": ("7", None, b"image"),
        "a.tar/cat/0002": (None, None, b"only"),
        "a.tar/cat/0003": ("red fox", None, b"third"),
        "a.tar/b.d/0004": (None, None, b"dots in folders"),
    }


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff", b"x" * 1001])
def test_cls_that_holds_no_label(tmp_path: Path, text: bytes) -> None:
    source = TarSource(one(tmp_path, ("1.jpg", b"1"), ("1.cls", text)))
    assert described(source) == {"a.tar/1": (None, None, b"1")}


def test_numbers_have_readable_names(tmp_path: Path) -> None:
    members = [(f"{i}.{ending}", data) for i, cls in ((1, b"1"), (2, b"0"), (3, b"7"))
               for ending, data in (("jpg", b"x"), ("cls", cls))]  # fmt: skip
    names = tmp_path / "names.txt"
    names.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n\n")
    source = TarSource(one(tmp_path, *members), SourceConfig(names=names))
    assert source.class_names == ("tench", "goldfish", "7")
    assert [label for label, _, _ in described(source).values()] == ["goldfish", "tench", "7"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-0.tar", "val-0.tar", "test-0.tar"), ["test", "train", "val"]),
        (("x/train/0.tar", "x/validation/0.tar"), ["train", "val"]),
        (("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), ["train", "val"]),
        (("train-0.tar", "other-0.tar"), [None, None]),
        (("val-0.tar", "test-0.tar"), [None, None]),
        (("train-val-0.tar", "train-1.tar"), [None, None]),
    ],
)
def test_splits_from_the_names_of_shards(tmp_path: Path, names: tuple[str, ...], splits: list[str | None]) -> None:
    for name in names:
        write_tar(tmp_path / name, [("1.jpg", b"1")])
    assert [record.split for record in TarSource(tmp_path).records] == splits


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_go_elsewhere_are_refused_and_named(
    tmp_path: Path, format: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ["/etc/passwd.jpg", "../up.jpg", "a/../../up.jpg", "a/../b.jpg", "x" * 40 + "/.." * 20 + "/e.jpg"]
    write_tar(tmp_path / "a.tar", [*((name, b"bad") for name in bad), ("good.jpg", b"good")], format)
    source = TarSource(tmp_path / "a.tar")
    assert described(source) == {"a.tar/good": (None, None, b"good")}
    assert source.refused == tuple(sorted(f"a.tar: {name}" for name in bad))
    assert all(name in caplog.text for name in bad)


@pytest.mark.parametrize("packed", ["gzip", "xz", "named"])
def test_compressed_shards_are_refused(tmp_path: Path, packed: str) -> None:
    path = one(tmp_path, ("1.jpg", b"1"))
    if packed == "named":
        path = path.rename(tmp_path / "a.tar.gz")
    else:
        write_tar(tmp_path / "b.tar", [("1.jpg", b"1")])
        path.write_bytes((gzip if packed == "gzip" else lzma).compress(path.read_bytes()))
    with pytest.raises(ConfigError, match="uncompressed" if packed == "named" else packed) as caught:
        TarSource(path if packed == "named" else tmp_path)
    assert (caught.value.field, caught.value.given) == ("images", str(path))


@pytest.mark.parametrize(
    ("size", "kept", "readable", "message"),
    [
        (1536 * 2, 2, 2, "no end marker"),
        (1536 * 2 + 100, 2, 2, "header at byte 3072"),
        (1536 * 2 + 512, 3, 2, "'2.jpg'.* 1000 bytes"),
        (1536 * 2 + 512 + 999, 3, 2, "'2.jpg'"),
        (1536 * 2 + 512 + 1000, 3, 3, "header at byte 4608: unexpected end"),
    ],
)
def test_a_truncated_shard_keeps_what_can_be_read(
    tmp_path: Path, size: int, kept: int, readable: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of members of 1,000 bytes: a header block and two data blocks each."""
    path = tmp_path / "a.tar"
    write_tar(path, [(f"{i}.jpg", bytes([i]) * 1000) for i in range(4)], tarfile.USTAR_FORMAT)
    os.truncate(path, size)
    write_tar(tmp_path / "b.tar", [("1.jpg", b"other")])
    source = TarSource(tmp_path)
    assert [record.key for record in source.records] == [*(f"a.tar/{i}" for i in range(kept)), "b.tar/1"]
    assert re.search(rf"a\.tar .*{message}", caplog.text)
    assert source.refused == ("a.tar",)
    for i, record in enumerate(source.records[:kept]):
        if i < readable:
            assert record.read() == bytes([i]) * 1000
        else:
            with pytest.raises(OSError, match=r"a\.tar") as caught:
                record.read()
            assert caught.value.errno == errno.EIO


def test_reads_that_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Callable[[int, int, int], bytes] = os.pread
    path = one(tmp_path, ("1.jpg", b"12345"))
    (record,) = TarSource(path).records
    monkeypatch.setattr("os.pread", lambda descriptor, size, offset: whole(descriptor, min(size, 2), offset))
    assert record.read() == b"12345"
    path.write_bytes(path.read_bytes())  # another modification time
    with pytest.raises(OSError, match=r"a\.tar") as caught:
        record.read()
    assert caught.value.errno == errno.ESTALE


# --- in a bucket ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path, bucket: ObjectPlace) -> tuple[str, str]:
    """The same shards on disk and in a bucket."""
    rng, root = np.random.default_rng(0), tmp_path / "shards"
    for name, first, count in (("train-0000", 0, 4), ("train-0001", 10, 4), ("train-0002", 20, 4), ("more/val", 90, 2)):
        images = [(f"{i:04d}.jpg", rng.bytes(int(rng.integers(1, 3000)))) for i in range(first, first + count)]
        write_tar(
            root / f"{name}.tar", [*images, *((f"{i:04d}.cls", b"%d" % (i % 3)) for i in range(first, first + count))]
        )
    (root / "notes.txt").write_text("no shard")
    for path in [path for path in root.rglob("*") if path.is_file()]:
        (bucket / "shards" / path.relative_to(root).as_posix()).write(path.read_bytes())
    return str(root), str(bucket / "shards")


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/train-0001.tar",
        "/train-{0000..0002}.tar",
        "/**/*.tar",
        "/{more,less}/*.tar",
        "/{train-000[12],more/val}.tar",
    ],
)
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
        ("/a.tar.gz", "uncompressed"),
    ],
)
def test_what_is_not_there_or_no_shard_is_refused(pair: tuple[str, str], pattern: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        open_source(pair[1] + pattern)
    assert (caught.value.field, caught.value.given) == ("images", pair[1] + pattern)


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_an_unchanged_shard_is_listed_once(
    pair: tuple[str, str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "UNSETTLED_S", 0)
    root, samples = pair[where == "bucket"], tar._samples
    first, listed = open_source(root), list[str]()

    def recorded(spans: Spans, shard: Shard, json_label: str, left_out: LeftOut) -> dict[str, tar._Sample]:
        listed.append(shard.name)
        return samples(spans, shard, json_label, left_out)

    monkeypatch.setattr(tar, "_samples", recorded)
    second = open_source(root)
    assert (second.records, second.class_names, listed) == (first.records, first.class_names, [])
    assert [record.read() for record in second.records] == [record.read() for record in first.records]
    assert [record.mark() for record in second.records] == [record.mark() for record in first.records]
    open_source(root, SourceConfig(json_label="other"))
    assert len(listed) == 4  # labels are others
    listed.clear()
    (place(root) / "train-0001.tar").write(one(tmp_path, ("0019.jpg", b"image")).read_bytes())
    assert "train-0001.tar/0019" in {record.key for record in open_source(root).records}
    assert listed == ["train-0001.tar"]
    listed.clear()
    for path in (cache_root() / "listings").iterdir():
        kept = json.loads(path.read_text())
        path.write_text(json.dumps({**kept, "samples": [[key, 10**9, *row] for key, _, *row in kept["samples"]]}))
    assert len(open_source(root).records) == 11
    assert len(listed) == 4  # offsets beyond the file are not believed


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
    first = next(record for record in records if record.key.startswith(changed.name)).read()
    changed.write(changed.read_bytes().replace(first, first[::-1]))
    after = {record.key: record.mark() for record in open_source(pair[1]).records}
    assert after.keys() == before.keys()
    assert {key.split("/")[0] for key in after if after[key] != before[key]} == {changed.name}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=90)
        .flatmap(lambda stem: st.sampled_from([stem, f"{stem}/{stem}", f"d/{stem}/e"]))
        .map(lambda stem: f"{stem}.jpg"),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    format=st.sampled_from(FORMATS),
    sizes=st.lists(st.sampled_from([0, 1, 511, 512, 513, 3000]), min_size=6, max_size=6),
)
@example(names=["d" * 150 + "/" + "n" * 90 + ".jpg"], format=tarfile.USTAR_FORMAT, sizes=[5] * 6)
@example(names=["é" * 60 + "/" + "é" * 40 + ".jpg"], format=tarfile.GNU_FORMAT, sizes=[5] * 6)
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, names: list[str], format: int, sizes: list[int]) -> None:
    members = [(name, bytes([65 + i]) * size) for i, (name, size) in enumerate(zip(names, sizes, strict=False))]
    try:
        write_tar(tmp_path / "a.tar", members, format)
    except ValueError:  # a name too long for ustar
        return
    with tarfile.open(tmp_path / "a.tar") as tar:
        truth = {}
        for info in tar.getmembers():
            file = tar.extractfile(info)
            assert file is not None
            parts = [part for part in info.name.split("/") if part not in ("", ".")]
            stem = parts[-1].split(".")[0]
            if stem and ".." not in parts and not info.name.startswith("/"):
                truth.setdefault("/".join(["a.tar", *parts[:-1], stem]), set()).add(file.read())
    if not truth:
        return
    source = TarSource(tmp_path / "a.tar")
    assert [record.key for record in source.records] == sorted(truth)
    assert all(record.read() in truth[record.key] for record in source.records)
