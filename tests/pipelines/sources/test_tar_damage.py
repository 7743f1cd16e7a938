"""Rejected members of tar shards, and what is kept of damaged shards."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import re
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
