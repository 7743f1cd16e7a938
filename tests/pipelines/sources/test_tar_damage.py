"""Rejected members of tar shards, and what is kept of damaged shards."""

from __future__ import annotations

import errno
import gzip
import io
import logging
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.conformance.kinds import write_tar

from substyle.errors import ConfigError
from substyle.pipelines.sources import TarSource

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def described(source: TarSource) -> dict[str, tuple[bytes, str | None, str | None]]:
    names = source.class_names
    return {r.key: (r.read(), None if r.label is None else names[r.label], r.split) for r in source.records}


def keys(source: TarSource) -> list[str]:
    return [record.key for record in source.records]


def one(root: Path, *members: tuple[str, bytes]) -> Path:
    write_tar(root / "a.tar", members)
    return root / "a.tar"


@pytest.mark.parametrize("format", FORMATS)
def test_names_that_go_elsewhere_are_refused_and_named(
    tmp_path: Path, format: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ["/etc/passwd.jpg", "../up.jpg", "a/../../up.jpg", "a/../b.jpg", "x" * 40 + "/.." * 20 + "/e.jpg"]
    write_tar(tmp_path / "a.tar", [*((name, b"bad") for name in bad), ("good.jpg", b"good")], format)
    source = TarSource(tmp_path / "a.tar")
    assert described(source) == {"a.tar/good": (b"good", None, None)}
    assert source.refused == tuple(sorted(f"a.tar: {name}" for name in bad))
    assert all(name in caplog.text for name in bad)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"M", b"Z"]
)
def test_what_is_no_file_is_refused_and_named(tmp_path: Path, kind: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, type_ in (
            ("1.jpg", tarfile.REGTYPE),
            ("2.jpg", kind),
            ("3", tarfile.DIRTYPE),
            ("4.jpg", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, "/etc/passwd"
            tar.addfile(info)
    source = TarSource(tmp_path / "a.tar")
    assert keys(source) == ["a.tar/1", "a.tar/4"]
    assert source.refused == ("a.tar: 2.jpg",)
    assert "2.jpg is a" in caplog.text


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_files_are_refused_and_what_follows_is_read(tmp_path: Path, format: str) -> None:
    with (tmp_path / "1.jpg").open("wb") as file:
        for i in range(60):  # enough holes for the map to continue after the header
            file.seek(i * 1_000_000)
            file.write(b"x" * 5000)
    (tmp_path / "2.jpg").write_bytes(b"second")
    command = ["tar", "--sparse", f"--format={format}", "-cf", "a.tar", "1.jpg", "2.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    if os.path.getsize(tmp_path / "a.tar") > 10_000_000:
        pytest.skip("the file system keeps no holes")
    source = TarSource(tmp_path / "a.tar")
    assert described(source) == {"a.tar/2": (b"second", None, None)}
    assert len(source.refused) == 1


@pytest.mark.parametrize("packed", ["gz", "xz", "named"])
def test_compressed_shards_are_refused(tmp_path: Path, packed: str) -> None:
    path = one(tmp_path, ("1.jpg", b"1"))
    data = path.read_bytes()
    if packed == "named":
        path = path.rename(tmp_path / "a.tar.gz")
        with pytest.raises(ConfigError) as caught:
            TarSource(path)
        assert (caught.value.field, caught.value.given) == ("images", str(path))
        return
    write_tar(tmp_path / "b.tar", [("1.jpg", b"1")])
    path.write_bytes(gzip.compress(data) if packed == "gz" else lzma.compress(data))
    with pytest.raises(ConfigError, match={"gz": "gzip", "xz": "xz"}[packed]) as caught:
        TarSource(tmp_path)
    assert (caught.value.field, caught.value.given) == ("images", str(path))


def shard(count: int = 4) -> bytes:
    """A shard with members of 1,000 bytes: a header block and two data blocks each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = 1000
            tar.addfile(info, io.BytesIO(bytes([i]) * 1000))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "kept", "readable", "message"),
    [
        (1536 * 2, 2, 2, "no end marker"),
        (1536 * 2 + 100, 2, 2, "header at byte 3072"),
        (1536 * 2 + 512, 3, 2, "'2.jpg'.* 1000 bytes"),
        (1536 * 2 + 512 + 999, 3, 2, "'2.jpg'"),
        (1536 * 2 + 512 + 1000, 3, 3, "header at byte 4608: unexpected end"),
        (1536 * 3, 3, 3, "no end marker"),
    ],
)
def test_a_truncated_shard_keeps_what_can_be_read(
    tmp_path: Path, size: int, kept: int, readable: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.tar").write_bytes(shard()[:size])
    write_tar(tmp_path / "b.tar", [("1.jpg", b"other")])
    source = TarSource(tmp_path)
    assert keys(source) == [*(f"a.tar/{i}" for i in range(kept)), "b.tar/1"]
    assert re.search(rf"a\.tar .*{message}", caplog.text)
    assert source.refused == ("a.tar",)
    for i, record in enumerate(source.records[:kept]):
        if i < readable:
            assert record.read() == bytes([i]) * 1000
        else:
            with pytest.raises(OSError, match=r"a\.tar") as caught:
                record.read()
            assert caught.value.errno == errno.EIO


def test_damage_in_the_middle_keeps_what_is_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(shard())
    data[1536 * 2 + 10] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    assert keys(TarSource(tmp_path)) == ["a.tar/0", "a.tar/1"]
    assert re.search(r"a\.tar .*no header at byte 3072", caplog.text)


def test_archives_that_were_put_together_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tar").write_bytes(shard(2) + shard(2))
    assert keys(TarSource(tmp_path)) == ["a.tar/0", "a.tar/1"]
    assert re.search(r"a\.tar .*end marker at byte 3072", caplog.text)


@pytest.mark.parametrize("content", [b"", b"no tar file at all" * 100, bytes(10240), b"\0" * 100])
def test_no_image_in_any_shard(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        TarSource(tmp_path)
    assert (caught.value.field, caught.value.given) == ("images", str(tmp_path))
    write_tar(tmp_path / "b.tar", [("1.jpg", b"1")])
    assert keys(TarSource(tmp_path)) == ["b.tar/1"]


def test_a_shard_that_was_written_anew_is_not_read_by_old_offsets(tmp_path: Path) -> None:
    path = one(tmp_path, ("1.jpg", b"old"), ("2.jpg", b"old"))
    source = TarSource(path)
    write_tar(path, [("2.jpg", b"new"), ("1.jpg", b"new")])
    os.utime(path, ns=(1, 1))
    with pytest.raises(OSError, match=r"a\.tar") as caught:
        source.records[0].read()
    assert caught.value.errno == errno.ESTALE


def test_an_image_that_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TarSource(one(tmp_path, ("1.jpg", b"12345"), ("2.jpg", b"123")))
    monkeypatch.setattr("substyle.pipelines.limits.MAX_IMAGE_FILE", 4)
    first, second = source.records
    with pytest.raises(OSError, match="4 bytes") as caught:
        first.read()
    assert caught.value.errno == errno.EFBIG
    assert second.read() == b"123"


def test_the_log_is_short_and_plain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [(f"../\x1b[2J{i}\n" + "x" * 300 + ".jpg", b"") for i in range(2000)]
    with caplog.at_level(logging.WARNING):
        source = TarSource(one(tmp_path, *bad, ("1.jpg", b"1")))
    assert len(caplog.records) == 21
    assert "and 1980 more" in caplog.text
    assert "\x1b" not in caplog.text
    assert len(source.refused) == 1000
